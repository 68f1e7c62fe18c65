"""The pictures of a PDF page by themselves, with their places.

A file says in many ways how a picture's stream becomes what the page shows (masks, palettes, inverted values,
rotation). So the stream is used as it is only where it looks like what the page shows; else pixels are.
"""

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pypdfium2 as pdfium
import pypdfium2.raw as raw
from PIL import Image, UnidentifiedImageError

from data_pipeline.build.read.pdf_text import Box, Frame
from data_pipeline.sample import content_id

_WALKED = 20_000  # objects of a page that are looked at
_SIDE = 32  # pixels of the pictures that are compared
_ALIKE = 16.0  # grey levels of mean difference
_WHOLE_PAGE = 0.9  # of its area


@dataclass(frozen=True)
class Found:
    """A picture with its box, or (`data` is None) why it is left out. `reason` is a short, closed phrase."""

    box: Box
    data: bytes | None = None
    reason: str = ""
    detail: str = ""


@dataclass
class Embedded:
    """The pictures of one document, each once. `seen` are streams that were given already."""

    max_pixels: int
    max_images: int  # of a page
    seen: set[str] = field(default_factory=set)

    def of(self, page: pdfium.PdfPage, frame: Frame) -> Iterator[Found]:
        objects = islice(page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE]), _WALKED)
        for number, image in enumerate(objects):
            corners = _corners(image)
            box = frame.box(corners)
            if number >= self.max_images:
                yield Found(
                    box, reason="too many images on a page", detail=f"max_images is {self.max_images}"
                )
            else:
                yield self._picture(image, corners, box)

    def _picture(self, image: pdfium.PdfImage, corners: Sequence[tuple[float, float]], box: Box) -> Found:
        try:
            if refused := self._refused(image, corners, box):
                return refused
            key = content_id(bytes(image.get_data()), repr(image.get_px_size()))
            if key in self.seen:
                return Found(box, reason="image repeated in the document", detail="shown before")
            self.seen.add(key)
            data = _bytes(image)
        except (pdfium.PdfiumError, OSError, ValueError, ZeroDivisionError) as e:
            return Found(box, reason="unreadable embedded image", detail=f"{e}")
        return Found(box, data)

    def _refused(
        self, image: pdfium.PdfImage, corners: Sequence[tuple[float, float]], box: Box
    ) -> Found | None:
        """Judged before a pixel is unpacked: what the stream holds, and what drawing it would take."""
        if (box[2] - box[0]) * (box[3] - box[1]) >= _WHOLE_PAGE:
            return Found(box, reason="image of the whole page", detail="the rendered page shows it")
        width, height = image.get_px_size()
        (ax, ay), (bx, by), (cx, cy) = corners[0], corners[1], corners[2]
        across, up = math.hypot(bx - ax, by - ay), math.hypot(cx - ax, cy - ay)
        if not (width and height and across > 0.1 and up > 0.1):
            return Found(box, reason="image of no size", detail=f"{width}x{height} pixels")
        scale = max(width / across, height / up, 1.0)
        drawn = (box_size := _bounds(corners))[0] * box_size[1] * scale * scale
        if max(width * height, drawn) > self.max_pixels:
            detail = f"{width}x{height}, {drawn:,.0f} pixels as drawn, image_pixels is {self.max_pixels:,}"
            return Found(box, reason="embedded image too large", detail=detail)
        return None


def _corners(image: pdfium.PdfObject) -> list[tuple[float, float]]:
    """Where the unit square of the image lies on the page, through the forms that hold it."""
    matrices = [image.get_matrix()]
    holder = image.container
    while holder is not None:
        matrices.append(holder.get_matrix())
        holder = holder.container
    corners = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]
    for m in matrices:
        corners = [(m.a * x + m.c * y + m.e, m.b * x + m.d * y + m.f) for x, y in corners]
    return corners


def _bounds(corners: Sequence[tuple[float, float]]) -> tuple[float, float]:
    xs, ys = [c[0] for c in corners], [c[1] for c in corners]
    return max(xs) - min(xs), max(ys) - min(ys)


def _bytes(image: pdfium.PdfImage) -> bytes:
    """The stream itself where it is a JPEG that looks as on the page; else its pixels, or as it is drawn."""
    on_page = _small(_drawn(image, to_original=False))
    if image.get_filters() == ["DCTDecode"]:
        data = bytes(image.get_data())
        if _alike(_small_jpeg(data), on_page):
            return data
    pixels = image.get_bitmap(render=False).to_pil()
    if not _alike(_small(pixels), on_page):
        pixels = _drawn(image, to_original=True)
    out = io.BytesIO()
    pixels.convert("L" if pixels.mode in ("1", "L") else "RGB").save(out, "PNG")
    return out.getvalue()


def _drawn(image: pdfium.PdfImage, *, to_original: bool) -> Image.Image:
    """As the page shows it, on white."""
    drawn = image.get_bitmap(render=True, scale_to_original=to_original).to_pil().convert("RGBA")
    white = Image.new("RGBA", drawn.size, "white")
    return Image.alpha_composite(white, drawn).convert("RGB")


def _small(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32)


def _small_jpeg(data: bytes) -> np.ndarray | None:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if image.mode not in ("L", "RGB"):  # four colours: hardly any viewer shows them as the page does
                return None
            image.draft("L", (2 * _SIDE, 2 * _SIDE))
            return _small(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return None


def _alike(one: np.ndarray | None, other: np.ndarray) -> bool:
    return one is not None and float(np.abs(one - other).mean()) < _ALIKE
