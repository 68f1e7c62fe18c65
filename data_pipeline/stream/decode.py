"""Encoded bytes to patches: Idefics2's image processing, without its padding. p pixels of a patch's side.

Bytes come from the open web: the header is judged before any pixel is decoded, and only four formats open.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from data_pipeline.image_spec import ImageSpec, boxes
from data_pipeline.orientation import TAG, UPRIGHT

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")

GREY = 128
"""The level nearest to 0 after the model's normalisation: what fills a blank tile, or one below a patch."""


class DecodeError(Exception):
    """The picture cannot be used. `reason` is one of a few, for counting; the text says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Picture:
    """One tile as the vision tower takes it. `blocks` may look into the decoded image: a batch copies it."""

    blocks: np.ndarray  # uint8[rows, columns, 3, p, p]

    @classmethod
    def of(cls, patches: np.ndarray, grid: tuple[int, int]) -> "Picture":
        """`patches`: uint8[rows * columns, 3, p, p], row by row."""
        return cls(patches.reshape(*grid, *patches.shape[1:]))

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        rows, columns = self.blocks.shape[:2]
        return rows, columns

    @property
    def patches(self) -> np.ndarray:
        """uint8[rows * columns, 3, p, p], row by row."""
        return self.blocks.reshape(-1, *self.blocks.shape[2:])


def decode(data: bytes | None, spec: ImageSpec, split: bool = False) -> tuple[Picture, ...]:
    """The tiles of the picture in `data`: itself, or with `split` its four quarters and then itself.

    The first frame of an animation; EXIF orientation applied; alpha over white. Raises DecodeError.
    """
    if not data:
        raise DecodeError("no bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            upright = _rgb(image, spec)
            whole = (0, 0, *upright.size)
            return tuple(
                _patchify(upright if box == whole else upright.crop(box), spec)
                for box in boxes(*upright.size, split)
            )
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise DecodeError("not an image", f"no {', '.join(FORMATS)}: begins with {data[:16]!r}") from None
    except Image.DecompressionBombError as e:
        raise DecodeError("too many pixels", str(e)) from None
    except Exception as e:  # noqa: BLE001 - on altered bytes the format parsers raise nearly anything
        raise DecodeError("broken image", f"{type(e).__name__}: {e}") from None


def blank(spec: ImageSpec, grid: tuple[int, int]) -> Picture:
    """What stands in for a tile that could not be decoded: grey, of the size that was planned for it."""
    return Picture(np.full((*grid, 3, spec.patch, spec.patch), GREY, dtype=np.uint8))


def _rgb(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """The image in its own size, upright, in RGB.

    A JPEG is decoded whole: libjpeg's smaller decoding (`draft`) is another filter, and up to 64 grey levels
    off after resizing (tests/benchmarks/bench_image_processing.py).
    """
    width, height = image.size
    if width * height > spec.max_pixels:
        raise DecodeError("too many pixels", f"{width} x {height}, allowed are {spec.max_pixels:,}")
    turn = UPRIGHT.get(_orientation(image))
    if image.mode.startswith("I"):  # 16-bit gray: a plain conversion would clip it to white
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(TAG, 1)
    except Exception:  # noqa: BLE001 - a broken EXIF block says nothing about the pixels
        return 1


def _patchify(tile: Image.Image, spec: ImageSpec) -> Picture:
    size = spec.size(*tile.size)
    if size != tile.size:
        tile = tile.resize(size, Image.Resampling.BILINEAR)
    rows, columns = spec.grid(*size)
    p = spec.patch
    pixels = np.asarray(tile)[: rows * p, : columns * p]
    if pixels.shape[:2] != (rows * p, columns * p):
        missing = [(0, rows * p - pixels.shape[0]), (0, columns * p - pixels.shape[1]), (0, 0)]
        pixels = np.pad(pixels, missing, constant_values=GREY)
    return Picture(pixels.reshape(rows, p, columns, p, 3).transpose(0, 2, 4, 1, 3))
