"""What a reader yields: samples, or faults that say which input was not used and why."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from data_pipeline.sample import Media, Sample

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why a sample, or one image of it, is left out. `bad`: the input cannot be read, somebody must look."""

    reason: str  # the funnel's key: a short, closed phrase
    detail: str
    bad: bool
    file: str
    where: str
    image: bytes | None = field(default=None, repr=False)  # of an image that was cut out, to show it


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing read: a sample with the images cut out of it, or the fault in its place."""

    file: str
    where: str
    sample: Sample | None = None
    fault: Fault | None = None
    cuts: tuple[Fault, ...] = ()

    @classmethod
    def failed(cls, fault: Fault) -> "Item":
        return cls(file=fault.file, where=fault.where, fault=fault)


@dataclass(frozen=True)
class Picture:
    """The encoded bytes of an image (None: not fetched yet) and what is known of it so far."""

    media: Media
    data: bytes | None


@dataclass(frozen=True)
class Stamp:
    """A file as it was found: `version` is its time or etag, which changes when the file does."""

    name: str
    size: int
    version: str


class Reader(Protocol):
    """One source. `units` are divided over the tasks; a unit gives any number of items."""

    def inputs(self) -> Sequence[Stamp]: ...

    def units(self) -> Sequence[Any]: ...

    def read(self, unit: Any) -> Iterator[Item]: ...


def _is_remote(reference: str) -> bool:
    try:
        return bool(urlsplit(reference).scheme) or reference.startswith("//")
    except ValueError:  # looks like an address, and is not even that
        return True


def html_reference(src: str) -> str:
    """An `src` attribute as a file name: `images/a%20b.png?x` is `images/a b.png`."""
    return src if _is_remote(src) else unquote(urlsplit(src.strip()).path)


def begins_with(data: bytes) -> str:
    """The first bytes, printable, for messages: never raw control characters on a terminal."""
    return repr(data[:24].decode("latin-1"))


def as_json(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
