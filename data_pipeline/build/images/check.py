"""Every image is proved to decode before it is written; what fails says what was expected and found.

Cheap before expensive: size of the file, format and header, then one decode that serves all the rest. The
decoders are a closed list, and what a file asks of them is judged from its header (see header.py).
"""

import dataclasses
import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from data_pipeline.build.images.cutting import without_images
from data_pipeline.build.images.header import (
    MAX_PARTS,
    MAX_SCANS,
    BrokenHeader,
    Header,
    image_format,
    read_header,
)
from data_pipeline.build.images.limits import ImageLimits
from data_pipeline.build.images.phash import perceptual_hash
from data_pipeline.build.images.sight import text_overlay, thumbnail, uniform
from data_pipeline.build.read.reading import begins_with
from data_pipeline.build.steps import Cut, Dropped, Kept, Step
from data_pipeline.sample import Media, Sample

FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
# Peak bytes per pixel of `inspect`, measured over modes and encoders, of the worst one, rounded up.
MEMORY = {"JPEG": 9, "PNG": 13, "WEBP": 22, "GIF": 13}
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
    """What is known of an image after all of it was decoded; hash and scores are of the upright thumbnail."""

    mime: str
    width: int
    height: int
    phash: int
    uniform: float
    text_overlay: float


@dataclass(frozen=True)
class Refusal:
    reason: str
    detail: str
    bad: bool


def inspect(data: bytes, limits: ImageLimits, *, page: bool = False) -> Facts | Refusal:
    """What the image is, after decoding all of it (of an animation, the first frame); or why it is refused.

    A rendered page (`page`) is whatever it is: only caps of size and memory hold for it.
    """
    header = _header(data, limits)
    if isinstance(header, Refusal):
        return header
    if refusal := _size(header, limits) or (None if page else _shape(header, len(data), limits)):
        return refusal
    facts = _decode(data, header)
    if isinstance(facts, Refusal) or page:
        return facts
    return _content(facts, limits) or facts


def _header(data: bytes, limits: ImageLimits) -> Header | Refusal:
    if not data:
        return Refusal("not an image", "the file is empty", bad=True)
    if len(data) > limits.max_bytes:
        return _refused("image file too large", f"{len(data):,} bytes", "max_bytes", limits)
    if (kind := image_format(data)) is None:
        return Refusal("not an image", _unidentified(data), bad=True)
    try:
        return read_header(data, kind)
    except BrokenHeader as e:
        word = "truncated" if "ends" in str(e) else "broken"
        return Refusal("unreadable image", f"{word} {kind}: {e}", bad=True)


def _size(header: Header, limits: ImageLimits) -> Refusal | None:
    """What decoding would cost: these hold for pages too."""
    size = f"{header.width}x{header.height}"
    pixels = header.width * header.height
    if pixels > limits.max_pixels:
        return _refused("image too large", f"{size} pixels", "max_pixels", limits)
    if (memory := pixels * MEMORY[header.format]) > limits.max_memory:
        found = f"{size} {header.format}, about {memory:,} bytes to decode"
        return _refused("image too large", found, "max_memory", limits)
    if header.scans > MAX_SCANS:
        return Refusal("image too costly", f"over {MAX_SCANS} scans in a JPEG", bad=False)
    if header.parts > MAX_PARTS:
        return Refusal("image too costly", f"over {MAX_PARTS:,} parts in a {header.format}", bad=False)
    return None


def _shape(header: Header, nbytes: int, limits: ImageLimits) -> Refusal | None:
    if header.format not in limits.formats:
        wanted = ", ".join(limits.formats)
        return Refusal("image format not wanted", f"{header.format}, images.formats is {wanted}", bad=False)
    if nbytes < limits.min_bytes:
        return _refused("image file too small", f"{nbytes:,} bytes", "min_bytes", limits)
    return _side(header, limits)


def _side(header: Header, limits: ImageLimits) -> Refusal | None:
    width, height = header.width, header.height
    size = f"{width}x{height}"
    if min(width, height) < limits.min_side:
        return _refused("image too small", size, "min_side", limits)
    if width < limits.min_width:
        return _refused("image too small", size, "min_width", limits)
    if height < limits.min_height:
        return _refused("image too small", size, "min_height", limits)
    if max(width, height) > limits.max_aspect * min(width, height):
        return _refused("image too elongated", size, "max_aspect", limits)
    if max(width, height) > limits.max_side:
        return _refused("image too large", size, "max_side", limits)
    if header.animated and limits.animated == "drop":
        return Refusal("animated image", f"several frames in a {header.format}", bad=False)
    return None


def _decode(data: bytes, header: Header) -> Facts | Refusal:
    try:
        with Image.open(io.BytesIO(data), formats=(header.format,)) as image:
            if image.size != (header.width, header.height):
                found = f"{image.width}x{image.height} pixels, the header says {header.width}x{header.height}"
                return Refusal("unreadable image", f"broken {header.format}: {found}", bad=True)
            small = thumbnail(image)
    except UnidentifiedImageError:
        return Refusal("unreadable image", f"broken {header.format}: no decoder opens it", bad=True)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as e:
        return Refusal("image too large", f"{e}", bad=False)
    except MemoryError:
        return Refusal("image too costly", f"no memory left to decode a {header.format}", bad=False)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        EOFError,
        LookupError,
        OSError,
        RuntimeError,
        SyntaxError,
        TypeError,
        ValueError,
        struct.error,
        zlib.error,
    ) as e:  # on altered bytes the parsers raise nearly anything
        word = "truncated" if "truncated" in str(e) else "broken"
        return Refusal("unreadable image", f"{word} {header.format}: {e}", bad=True)
    return Facts(
        mime=FORMATS[header.format],
        width=header.width,
        height=header.height,
        phash=perceptual_hash(small),
        uniform=uniform(small),
        text_overlay=text_overlay(small),
    )


def _content(facts: Facts, limits: ImageLimits) -> Refusal | None:
    if facts.uniform > limits.max_uniform:
        return _refused("blank image", f"{facts.uniform:.1%} of one colour", "max_uniform", limits)
    if facts.text_overlay > limits.max_text_overlay:
        found = f"text overlay {facts.text_overlay:.2f}"
        return _refused("text over the image", found, "max_text_overlay", limits)
    return None


def _refused(reason: str, found: str, key: str, limits: ImageLimits) -> Refusal:
    return Refusal(reason, f"{found}, images.{key} is {getattr(limits, key):,}", bad=False)


def _unidentified(data: bytes) -> str:
    head = data[:64].lstrip().lower()
    for magic, name in _LOOKS_LIKE:
        if head.startswith(magic):
            return f"not an image: starts like {name} ({begins_with(data)})"
    expected = ", ".join(FORMATS)
    return f"not an image: begins with {begins_with(data)}; expected one of {expected}"


class CheckImages(Step):
    """Fills in what `inspect` finds (mime, size, perceptual hash, scores), and takes out what it refuses.

    A refused image takes its sample with it, except in documents: there the image alone is cut.
    """

    type = "check"
    name = "images"

    def __init__(self, limits: ImageLimits, *, of_source: Mapping[str, ImageLimits] | None = None):
        super().__init__()
        self.limits = limits
        self.of_source = of_source or {}

    def judge(self, sample: Sample) -> Kept | Dropped:
        if not sample.media:
            return Kept(sample)
        limits = self.of_source.get(sample.source, self.limits)
        media = list(sample.media)
        cuts = []
        for i, (medium, data) in enumerate(zip(sample.media, sample.image_bytes, strict=True)):
            if data is None and medium.error:
                continue  # a reference that the recipe keeps without its bytes
            found = inspect(data or b"", limits, page=medium.kind == "page")
            if isinstance(found, Refusal):
                # What a web server sent in place of an image is nobody's file to repair.
                address = medium.url or sample.url or ""  # one inside a web page has none of its own
                bad = found.bad and not address.startswith(("http://", "https://"))
                cuts.append(Cut(i, found.reason, found.detail, bad))
            else:
                media[i] = _described(medium, found)
        checked = dataclasses.replace(sample, media=tuple(media))
        return without_images(checked, cuts, "check_images")


def _described(media: Media, facts: Facts) -> Media:
    scores = {"text_overlay": facts.text_overlay, "uniform": facts.uniform}
    return dataclasses.replace(
        media,
        mime=facts.mime,
        width=facts.width,
        height=facts.height,
        orig_width=facts.width,
        orig_height=facts.height,
        phash=facts.phash,
        scores={**(media.scores or {}), **scores},
    )
