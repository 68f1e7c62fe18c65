"""A few of the samples and images that a task dropped, for each reason, small enough to show on a page.

DIR/examples/00000.jsonl     of task 0: up to `K` for each source and reason, with thumbnails
"""

import base64
import contextlib
import io
import json
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_pipeline.build.images.phash import decode_small
from data_pipeline.build.read.reading import Fault
from data_pipeline.manifest import commit
from data_pipeline.sample import Sample

K = 3  # examples of one source and reason
SIDE = 96  # pixels of a thumbnail's longer side
MAX_PIXELS = 25_000_000  # a larger image is not decoded for a thumbnail
MOST_IMAGES = 2
MOST_CHARS = 300
MOST_DETAIL = 300
_UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, MemoryError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


class Thumbnail(BaseModel):
    """A small JPEG in base64; or no image, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    jpeg: str | None = Field(None, pattern=r"^[A-Za-z0-9+/=]+$", max_length=40_000)
    note: str = ""


class Example(BaseModel):
    """One thing that was dropped: a whole sample, or one image of a document."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    source: str
    part: Literal["sample", "image"]
    reason: str
    detail: str
    file: str
    where: str
    id: str | None = None
    text: str = ""
    images: tuple[Thumbnail, ...] = ()


class Examples:
    """Collects the first `k` of each (source, part, reason); what comes after costs a look-up.

    Memory is bounded by the number of reasons: thumbnails are made at once, no sample is held.
    """

    def __init__(self, k: int = K):
        self.k = k
        self.seen: Counter[tuple[str, str, str]] = Counter()
        self.found: list[Example] = []

    def add_sample(self, source: str, fault: Fault, sample: Sample | None) -> None:
        """A dropped sample; None where the input never became one."""
        images = [data for data in sample.image_bytes if data] if sample else []
        self._add("sample", source, fault, sample, images)

    def add_image(self, source: str, fault: Fault, sample: Sample | None, image: bytes | None) -> None:
        """An image cut from `sample`; `image` is None where its bytes were never had."""
        self._add("image", source, fault, sample, [image] if image is not None else [])

    def lines(self) -> Iterator[dict[str, Any]]:
        """The examples as JSON objects, in order of source, part and reason."""
        for example in sorted(self.found, key=lambda e: (e.source, e.part, e.reason)):
            yield example.model_dump(mode="json")

    def _add(
        self,
        part: Literal["sample", "image"],
        source: str,
        fault: Fault,
        sample: Sample | None,
        images: list[bytes],
    ) -> None:
        key = (source, part, fault.reason)
        self.seen[key] += 1
        if self.seen[key] > self.k:
            return
        self.found.append(
            Example(
                source=source,
                part=part,
                reason=fault.reason,
                detail=fault.detail[:MOST_DETAIL],
                file=fault.file,
                where=fault.where,
                id=sample.id if sample else None,
                text=beginning(sample) if sample else "",
                images=tuple(thumbnail(data) for data in images[:MOST_IMAGES]),
            )
        )


def write_examples(directory: Path, task: int, examples: Examples) -> str:
    """Commit the examples of a task. Returns the file's path, relative to the dataset."""
    path = f"examples/{task:05d}.jsonl"
    with commit(directory / path) as f:
        for line in examples.lines():
            f.write((json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n").encode())
    return path


def read_examples(directory: Path, tasks: int, k: int = K) -> list[Example]:
    """Up to `k` examples of each source, part and reason, over all tasks in turn.

    A line that is no example is left out: the files are there to be looked at, nothing depends on them.
    """
    of_key: dict[tuple[str, str, str], list[Example]] = {}
    for task in range(tasks):
        path = directory / "examples" / f"{task:05d}.jsonl"
        for line in path.read_bytes().splitlines() if path.exists() else ():
            with contextlib.suppress(ValidationError):
                example = Example.model_validate_json(line)
                mine = of_key.setdefault((example.source, example.part, example.reason), [])
                if len(mine) < k:
                    mine.append(example)
    return [example for _, mine in sorted(of_key.items()) for example in mine]


def thumbnail(data: bytes, side: int = SIDE) -> Thumbnail:
    """The image at most `side` pixels long, or the reason why there is nothing to show. Never raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the cap is our own
            small = decode_small(data, side, MAX_PIXELS)
        small = _rgb(small)
        small.thumbnail((side, side))
        out = io.BytesIO()
        small.save(out, "JPEG", quality=70)
    except _UNREADABLE as e:
        return Thumbnail(note=f"not shown: {e}"[:MOST_DETAIL])
    return Thumbnail(jpeg=base64.b64encode(out.getvalue()).decode())


def _rgb(image: Image.Image) -> Image.Image:
    """In RGB: what is transparent over white, 16 bits as their upper 8."""
    if image.mode in ("RGBA", "LA", "PA", "P"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    return image.convert("RGB")


def beginning(sample: Sample, most: int = MOST_CHARS) -> str:
    """The first `most` characters of the sample's text; a mark shows where more was cut off."""
    parts: list[str] = []
    length = 0
    for segment in sample.segments:
        if segment.text and length <= most:  # no more is put together than is needed
            parts.append(segment.text[: most + 1])
            length += len(parts[-1]) + 1
    text = "\n".join(parts)
    return text if len(text) <= most else f"{text[:most]}…"
