"""One sample of a benchmark, whatever file it came from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.errors import DataError

Image = Path | bytes
"""A picture as a file of its own, or as the bytes that stood in a row."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """`unit` names the picture: samples of one unit are drawn together in an interval, and are never each
    other's blind picture. `truths`: right answers, captions, or the letter of the right choice."""

    id: str
    text: str = ""
    images: tuple[Image, ...] = field(default=(), repr=False)
    truths: tuple[str, ...] = ()
    unit: str = ""
    options: tuple[str, ...] = ()
    about: Mapping[str, str] = field(default_factory=dict)


Files = Mapping[str, Sequence[Path]]
Reader = Callable[[Files, str | None], list[Question]]
"""The files of a part by role, and its split -> its questions. Raises DataError."""


def only(files: Files, role: str) -> Path:
    """The one file of that role."""
    found = files.get(role, ())
    if len(found) != 1:
        raise DataError(f"the layout reads one file `{role}`, the task names {len(found)}")
    return found[0]


def picture_bytes(image: Image) -> bytes:
    """Raises DataError where the file cannot be read."""
    if isinstance(image, bytes):
        return image
    try:
        return image.read_bytes()
    except OSError as e:
        raise DataError(f"{image}: cannot be read: {e.strerror}") from None
