"""Encoded bytes to a picture of the model's size. S pixels a side, G patches a side.

Bytes come from the open web: the header is judged before any pixel is decoded, and only four formats open.
"""

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from data_pipeline.image_spec import ImageSpec
from data_pipeline.orientation import TAG, UPRIGHT

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")


class DecodeError(Exception):
    """The picture cannot be used. `reason` is one of a few, for counting; the text says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as the vision tower takes it: top left in the square, padding 0."""

    pixels: torch.Tensor  # float32[3, S, S] in -1..1
    patch_mask: torch.Tensor  # bool[G, G]; True where a patch holds any real pixel


def decode(data: bytes | None, spec: ImageSpec) -> Picture:
    """The picture in `data`, its longest side scaled to `spec.side` (up or down), its aspect kept.

    The first frame of an animation; alpha over white; EXIF orientation applied. Raises DecodeError.
    """
    if not data:
        raise DecodeError("no bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _fit(_rgb(image, spec), spec)
    except DecodeError:
        raise
    except Image.UnidentifiedImageError:
        raise DecodeError("not an image", f"no {', '.join(FORMATS)}: begins with {data[:16]!r}") from None
    except Image.DecompressionBombError as e:
        raise DecodeError("too many pixels", str(e)) from None
    except Exception as e:  # noqa: BLE001 - on altered bytes the format parsers raise nearly anything
        raise DecodeError("broken image", f"{type(e).__name__}: {e}") from None


def blank(spec: ImageSpec) -> Picture:
    """What stands in for a picture that could not be decoded: zeros under a full mask.

    The tower needs at least one patch; an all-False mask would make attention over nothing.
    """
    return Picture(
        pixels=torch.zeros(3, spec.side, spec.side),
        patch_mask=torch.ones(spec.grid, spec.grid, dtype=torch.bool),
    )


def _rgb(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """The image upright, in RGB, with the longest side at `spec.side`."""
    width, height = image.size
    if width * height > spec.max_pixels:
        raise DecodeError("too many pixels", f"{width} x {height}, allowed are {spec.max_pixels:,}")
    scale = spec.side / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # JPEG can be decoded at 1/2, 1/4 or 1/8: twice the wanted size is kept for the final filter.
    image.draft("RGB", (2 * size[0], 2 * size[1]))
    turn = UPRIGHT.get(_orientation(image))
    if image.mode.startswith("I"):  # 16-bit gray: a plain conversion would clip it to white
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(TAG)
    except Exception:  # noqa: BLE001 - a broken EXIF block says nothing about the pixels
        return None


def _fit(image: Image.Image, spec: ImageSpec) -> Picture:
    values = np.array(image, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
    _, height, width = values.shape
    pixels = np.zeros((3, spec.side, spec.side), dtype=np.float32)
    pixels[:, :height, :width] = values
    mask = np.zeros((spec.grid, spec.grid), dtype=np.bool_)
    mask[: -(-height // spec.patch), : -(-width // spec.patch)] = True
    return Picture(pixels=torch.from_numpy(pixels), patch_mask=torch.from_numpy(mask))
