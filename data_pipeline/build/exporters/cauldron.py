"""The Cauldron and FineVision: Parquet with `images` and `texts`: [{user, assistant, source}, ...].

All images open the first question: a dialogue with a picture elsewhere, or with instructions of the system,
has no place here. Kept: text to the character, image bytes, order.
"""

from pathlib import Path

import pyarrow as pa

from data_pipeline.build.exporters.elements import Shown, Unfit, check_dialogue, shown
from data_pipeline.build.exporters.files import IMAGES, ParquetFiles, size_of, stored
from data_pipeline.sample import Sample, Segment

_TEXT = pa.struct([("user", pa.string()), ("assistant", pa.string()), ("source", pa.string())])
_SCHEMA = pa.schema([("images", IMAGES), ("texts", pa.list_(_TEXT)), ("source", pa.string())])


class Cauldron:
    def __init__(self, out: Path):
        self.rows = ParquetFiles(out, _SCHEMA)

    def add(self, sample: Sample, split: str) -> int:
        """The number of images written. Raises Unfit."""
        check_dialogue(sample)
        pictures, turns = _opening(sample)
        texts = []
        for user, assistant in zip(turns[::2], turns[1::2], strict=False):
            if (user[0], assistant[0]) != ("user", "assistant"):
                raise Unfit("turns that do not alternate")
            texts.append({"user": user[1], "assistant": assistant[1], "source": sample.source})
        if len(turns) % 2 or not texts:
            raise Unfit("a question without an answer")
        row = {"images": stored(list(pictures)), "texts": texts, "source": sample.source}
        self.rows.add(split, row, size_of(pictures) + sum(len(t) for _, t in turns))
        return len(pictures)

    def close(self) -> None:
        self.rows.close()


def _opening(sample: Sample) -> tuple[list[Shown], list[tuple[str, str]]]:
    """The pictures, which must come first, and (role, text) of each turn."""
    first = next((i for i, s in enumerate(sample.segments) if s.type == "text"), len(sample.segments))
    opening, rest = sample.segments[:first], sample.segments[first:]
    if any(s.type == "image" for s in rest) or any(s.role != "user" for s in opening):
        raise Unfit("an image inside the dialogue")
    turns: list[tuple[str, str]] = []
    last: Segment | None = None
    if opening and (not rest or rest[0].role != "user"):
        turns.append(("user", ""))  # a question may be a picture alone
        last = opening[-1]
    for s in rest:
        if s.role == "system":
            raise Unfit("instructions of the system")
        if last is not None and (last.role, last.turn) == (s.role, s.turn):
            raise Unfit("a turn of several texts")
        turns.append((s.role or "", s.text or ""))
        last = s
    return [shown(sample, s.media or 0) for s in opening], turns
