"""The Cauldron and FineVision: `images` (a list) and `texts`: [{user, assistant, source}, ...].

All images open the first question, in their order; a row without images is a dialogue without pictures. Kept:

    user, assistant                 segments, unchanged to the character
    other keys of a text (source)   general_metadata["texts"]: a list of mappings, one for each text; absent
                                    where no text has any
    <name>_min                      Sample.scores[<name>_min], and as they are in general_metadata
    <name>_ratings (one per turn)   general_metadata; Sample.scores[<name>_min] is their minimum where the row
                                    does not state it
    every other column (source)     general_metadata
"""

from collections.abc import Mapping
from typing import Any

from data_pipeline.build.read.layouts.fields import (
    Found,
    Pictures,
    Unfit,
    licence,
    listed,
    numbers,
    rest,
    text,
)
from data_pipeline.build.read.layouts.turns import Message, dialogue
from data_pipeline.build.read.rows.row import Row

_MAX_IMAGES = 1024

DOCUMENTS = False


def recognises(value: Mapping[str, Any]) -> bool:
    texts = value.get("texts")
    return isinstance(texts, list) and any(isinstance(t, dict) and "assistant" in t for t in texts)


def read(row: Row, pictures: Pictures) -> Found:
    value = row.value
    assert isinstance(value, dict)
    images = listed(value.get("images"), "images")
    if len(images) > _MAX_IMAGES:
        raise Unfit("row too large", f"{len(images):,} images, the limit is {_MAX_IMAGES:,}", bad=False)
    found = tuple(pictures.find(image) for image in images)
    messages: list[Message] = []
    extra: list[dict[str, Any]] = []
    for n, entry in enumerate(listed(value.get("texts"), "texts")):
        if not isinstance(entry, dict):
            raise Unfit("invalid record", f"text {n} is a {type(entry).__name__}, expected a mapping")
        opening = (None,) * len(found) if n == 0 else ()
        messages.append(Message("user", (*opening, text(entry.get("user"), "user"))))
        messages.append(Message("assistant", (text(entry.get("assistant"), "assistant"),)))
        extra.append(rest(entry, ("user", "assistant")))
    metadata = rest(value, ("images", "texts", "license"))
    if any(extra):
        metadata["texts"] = extra
    return Found(
        kind="instruct",
        segments=dialogue(_without_blanks(messages)),
        pictures=found,
        metadata=metadata,
        scores=_scores(value),
        licence=licence(value),
    )


def _without_blanks(messages: list[Message]) -> list[Message]:
    """A question may be a picture alone: then its text is no segment."""
    return [Message(m.role, tuple(p for p in m.parts if p is None or p)) for m in messages]


def _scores(value: Mapping[str, Any]) -> dict[str, float]:
    scores = {}
    for name, ratings in value.items():
        if name.endswith("_ratings") and isinstance(ratings, list):
            rated = numbers({str(i): r for i, r in enumerate(ratings)}, [str(i) for i in range(len(ratings))])
            if rated:
                scores[f"{name.removesuffix('_ratings')}_min"] = min(rated.values())
    return {**scores, **numbers(value, [k for k in value if k.endswith("_min")])}
