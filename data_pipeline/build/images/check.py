"""Every image is proved to decode before it is written; what fails says what was expected and found.

The decoders are a closed list, and the size is judged from the header, before a pixel is unpacked.
"""

import dataclasses
import io
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from PIL import Image, UnidentifiedImageError

from data_pipeline.build.read.documents import lineage_of
from data_pipeline.build.read.reading import Fault, begins_with
from data_pipeline.build.recipe import ImageLimits
from data_pipeline.sample import Media, Sample

FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
_LOOKS_LIKE = (
    (b"<!doctype html", "HTML"),
    (b"<html", "HTML"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML"),
    (b"%pdf-", "PDF"),
    (b"{", "JSON"),
    (b"version https://git-lfs", "a Git LFS pointer"),
    (b"ii*\0", "TIFF"),
    (b"mm\0*", "TIFF"),
    (b"bm", "BMP"),
    (b"pk\x03\x04", "a ZIP archive"),
)


@dataclass(frozen=True)
class Facts:
    mime: str
    width: int
    height: int


@dataclass(frozen=True)
class Refusal:
    reason: str
    detail: str
    bad: bool


def inspect(data: bytes, limits: ImageLimits, *, page: bool = False) -> Facts | Refusal:
    """What the image is, after decoding all of it (of an animation, the first frame); or why it is refused.

    A rendered page (`page`) is whatever shape it is: only size caps hold for it.
    """
    if not data:
        return Refusal("not an image", "the file is empty", bad=True)
    opened = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
                opened = image.format or "image"
                width, height = image.size
                if refusal := _size(width, height, limits, page):
                    return refusal
                image.load()
                return Facts(FORMATS[opened], width, height)
    except UnidentifiedImageError:
        return Refusal("not an image", _unidentified(data), bad=True)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as e:
        return Refusal("image too large", f"{e}", bad=False)
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, MemoryError) as e:
        word = "truncated" if "truncated" in str(e) else "broken"
        return Refusal("unreadable image", f"{word} {opened or 'image'}: {e}", bad=True)


def _size(width: int, height: int, limits: ImageLimits, page: bool) -> Refusal | None:
    if width * height > limits.max_pixels:
        detail = f"{width}x{height} pixels, images.max_pixels is {limits.max_pixels:,}"
        return Refusal("image too large", detail, bad=False)
    if page:
        return None
    if min(width, height) < limits.min_side:
        return Refusal(
            "image too small", f"{width}x{height}, images.min_side is {limits.min_side}", bad=False
        )
    if max(width, height) > limits.max_aspect * min(width, height):
        detail = f"{width}x{height}, images.max_aspect is {limits.max_aspect:g}"
        return Refusal("image too elongated", detail, bad=False)
    return None


def _unidentified(data: bytes) -> str:
    head = data[:64].lstrip().lower()
    for magic, name in _LOOKS_LIKE:
        if head.startswith(magic):
            return f"not an image: starts like {name} ({begins_with(data)})"
    expected = ", ".join(FORMATS)
    return f"not an image: begins with {begins_with(data)}; expected one of {expected}"


class CheckImages(PipelineStep):
    """Fills in mime, width and height, and takes out what `inspect` refuses.

    A refused image takes its sample with it, except in documents: there the image alone is cut.
    """

    type = "check"
    name = "images"

    def __init__(self, limits: ImageLimits):
        super().__init__()
        self.limits = limits

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for doc in data:
            mark = doc.metadata
            if mark.get("sample") is not None and mark["fault"] is None and mark["sample"].media:
                self._check(mark)
            yield doc

    def _check(self, mark: dict) -> None:
        sample: Sample = mark["sample"]
        checked: dict[int, Media] = {}
        faults: list[Fault] = []
        for i, (media, data) in enumerate(zip(sample.media, sample.image_bytes, strict=True)):
            found = inspect(data or b"", self.limits, page=media.kind == "page")
            if isinstance(found, Refusal):
                faults.append(
                    Fault(
                        reason=found.reason,
                        detail=found.detail,
                        bad=found.bad,
                        file=media.url or mark["file"],
                        where=mark["where"]
                        if media.url == mark["file"]
                        else f"{mark['file']}, {mark['where']}",
                    )
                )
            else:
                checked[i] = dataclasses.replace(
                    media,
                    mime=found.mime,
                    width=found.width,
                    height=found.height,
                    orig_width=found.width,
                    orig_height=found.height,
                )
        if faults and sample.kind != "interleaved":
            mark["fault"] = faults[0]
            return
        mark["sample"] = _keep(sample, checked, tuple(faults))
        mark["cuts"] = (*mark["cuts"], *faults)
        if not mark["sample"].segments:
            mark["fault"] = dataclasses.replace(faults[0], bad=False, reason="no image left")


def _keep(sample: Sample, kept: dict[int, Media], faults: tuple[Fault, ...]) -> Sample:
    """The sample with these media only, renumbered; the other images leave the sequence."""
    number = {old: new for new, old in enumerate(kept)}
    segments = (s for s in sample.segments if s.media is None or s.media in number)
    return dataclasses.replace(
        sample,
        kind=sample.kind if kept or sample.kind != "interleaved" else "text",
        segments=tuple(
            s if s.media is None else dataclasses.replace(s, media=number[s.media]) for s in segments
        ),
        media=tuple(kept.values()),
        image_bytes=tuple(sample.image_bytes[i] for i in kept),
        lineage=(*(sample.lineage or ()), *(lineage_of(faults, "check_images") or ())) or None,
    )
