"""What a reader yields: samples, or faults that say which input was not used and why."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from data_pipeline.sample import Media, Sample, content_id

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why a sample, or one image of it, is left out. `bad`: the input cannot be read, somebody must look."""

    reason: str  # the funnel's key: a short, closed phrase
    detail: str
    bad: bool
    file: str
    where: str


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
    """The encoded bytes of an image and what is known of it so far."""

    media: Media
    data: bytes


class Reader(Protocol):
    """One source. `units` are divided over the tasks; a unit gives any number of items."""

    def inputs(self) -> list[Path]: ...

    def units(self) -> Sequence[Any]: ...

    def read(self, unit: Any) -> Iterator[Item]: ...


@dataclass(frozen=True)
class Folder:
    """The tree that a source may read from. Nothing outside it is opened, whatever a document asks for."""

    root: Path
    max_bytes: int

    def name(self, path: Path) -> str:
        """The path as it is recorded: relative to the source, so that no machine shows in the data."""
        return path.relative_to(self.root).as_posix()

    def picture(
        self, reference: str, base: Sequence[Path], file: str, where: str, alt: str | None = None
    ) -> Picture | Fault:
        """The image that `reference` names, looked for in the folders of `base` in turn."""

        def fault(reason: str, detail: str) -> Fault:
            return Fault(reason=reason, detail=detail, bad=True, file=file, where=where)

        shown = reference if len(reference) <= 120 else f"{reference[:117]}..."
        if reference.startswith("data:"):
            return fault("embedded image", "images inside the page's text are not read")
        if _is_remote(reference):
            return fault("remote image", f"'{shown}' is no local file; nothing is fetched from the network")
        try:
            candidates = [(b / reference).resolve() for b in base]
            inside = [c for c in candidates if c.is_relative_to(self.root)]
            path = next((c for c in inside if c.is_file()), None)
        except (OSError, RuntimeError, ValueError):  # no name of a file: too long, NUL, a circle of links
            return fault("missing image", f"{shown!r} names no file")
        if path is None and len(inside) < len(candidates):
            return fault("path leaves the source", f"'{shown}' lies outside the source's folder")
        if path is None:
            return fault("missing image", f"no file '{shown}'")
        if (size := path.stat().st_size) > self.max_bytes:
            detail = f"'{shown}' has {size:,} bytes, images.max_bytes is {self.max_bytes:,}"
            return Fault(reason="image file too large", detail=detail, bad=False, file=file, where=where)
        try:
            data = path.read_bytes()
        except OSError as e:
            return fault("unreadable image", f"'{shown}': {e.strerror}")
        media = Media(media_id=content_id(data), nbytes=len(data), url=self.name(path), alt=alt or None)
        return Picture(media, data)


def _is_remote(reference: str) -> bool:
    try:
        return bool(urlsplit(reference).scheme) or reference.startswith("//")
    except ValueError:  # looks like an address, and is not even that
        return True


def html_reference(src: str) -> str:
    """An `src` attribute as a file name: `images/a%20b.png?x` is `images/a b.png`."""
    return src if _is_remote(src) else unquote(urlsplit(src.strip()).path)


def read_document(path: Path, file: str) -> bytes | Fault:
    """The bytes of a file, or the fault that says why the system does not give them."""
    try:
        return path.read_bytes()
    except OSError as e:
        detail = f"cannot be opened: {e.strerror}"
        return Fault(reason="unreadable file", detail=detail, bad=True, file=file, where="file")


def files_below(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """The file itself, or the folder's files of these suffixes, in a fixed order. Links are not followed."""
    if path.is_file():
        return [path]
    found = (p for p in path.rglob("*") if p.suffix.lower() in suffixes)
    return sorted((p for p in found if p.is_file() and not p.is_symlink()), key=lambda p: p.as_posix())


def begins_with(data: bytes) -> str:
    """The first bytes, printable, for messages: never raw control characters on a terminal."""
    return repr(data[:24].decode("latin-1"))


def as_json(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
