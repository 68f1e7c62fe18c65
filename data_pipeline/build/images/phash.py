"""The perceptual hash: 64 bits that stay nearly equal when a picture is scaled or encoded again.

pHash (signs of the lowest 8x8 frequencies around their median) with the bit order of the ImageHash library,
computed from a small grey copy of the picture.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from data_pipeline.orientation import TAG, UPRIGHT

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
SIDE = 32  # pixels of the grey copy that the cosine transform sees
_KEPT = 8  # frequencies kept in each direction
# What Pillow's parsers raise on altered bytes, besides OSError and ValueError.
_BROKEN = (
    Image.DecompressionBombError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    struct.error,
    zlib.error,
)
# DCT-II, unnormalised: row k holds cos(pi k (2n + 1) / 2N) of the N pixels n.
_COSINES = np.cos(np.pi * np.arange(_KEPT)[:, None] * (2 * np.arange(SIDE) + 1) / (2 * SIDE))
# A mirrored picture has the opposite sign in every odd horizontal frequency; bit 63 is frequency (0, 0).
_ODD = 0x5555555555555555

Bits = TypeVar("Bits", int, np.ndarray)


@dataclass(frozen=True)
class Thumbnail:
    """What is compared where hashes are near: `grey` float32[16, 16], and `side`, the pixels of the picture's
    shorter side (of a larger picture 64 or more, as it was decoded)."""

    grey: np.ndarray
    side: int


def perceptual_hash(image: Image.Image) -> int:
    """The pHash of a picture of any mode and size, seen upright (EXIF) and over white; the first bit of row 0
    is the highest.

    It may be decoded at reduced size (`Image.draft`) as long as both sides keep 64 pixels or more.
    """
    return phash(_pixels(small_grey(image), SIDE))


def phash(grey: np.ndarray) -> int:
    """pHash of grey pixels [32, 32]; differences below a millionth of a grey level count as none."""
    waves = _COSINES @ grey.astype(np.float64) @ _COSINES.T
    waves[np.abs(waves) < 1e-6] = 0  # else rounding alone would decide the bits of a plain surface
    ordered = np.sort(waves, axis=None)
    median = (ordered[_KEPT * _KEPT // 2 - 1] + ordered[_KEPT * _KEPT // 2]) / 2
    return int.from_bytes(np.packbits(waves > median).tobytes(), "big")


def mirrored_phash(bits: Bits) -> Bits:
    """The pHash of the mirrored picture, from the pHash alone; works on integers and on uint64 arrays.

    Exact but for coefficients between the median and minus the median: a few bits in 64.
    """
    return bits ^ (np.uint64(_ODD) if isinstance(bits, np.ndarray) else _ODD)


def thumbnail(image: Image.Image) -> Thumbnail:
    """Of a picture as `perceptual_hash` takes it."""
    small = small_grey(image)
    return Thumbnail(_pixels(small, SIDE // 2).astype(np.float32), min(small.size))


def bits_allowed(distance: int, a: Thumbnail, b: Thumbnail) -> int:
    """Bits in which the pHashes of copies may differ: `distance`, or half of it (rounded down) for a picture
    whose shorter side has less than the 32 pixels that the cosine transform sees. What it lacks is made up by
    interpolation, so its 64 bits say less, and two notes or two brackets share more of them by chance.
    """
    return distance if min(a.side, b.side) >= SIDE else distance // 2


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation, -1 to 1, of the steps from pixel to pixel of two thumbnails' `grey`.

    Steps, not brightness: the many pictures of a light thing on dark ground correlate in brightness. A plain
    surface has similarity 0 to everything.
    """
    x, y = _steps(a), _steps(b)
    lengths = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / lengths if lengths > 1 else 0.0


def decode_small(data: bytes, side: int = 64, max_pixels: int = 50_000_000) -> Image.Image:
    """The picture in `data`, decoded whole but not larger than needed: no side falls below `side`.

    A JPEG comes at 1/2, 1/4 or 1/8 of its size, which costs a fraction; a truncated one still raises OSError.
    Raises OSError or ValueError where the bytes are no sound image of the four formats, or too many pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise ValueError(f"{image.width}x{image.height} pixels, allowed are {max_pixels:,}")
            image.draft(None, (side, side))
            image.load()
            return image
    except _BROKEN as e:
        raise ValueError(f"broken image: {e}") from None


def small_grey(image: Image.Image) -> Image.Image:
    """A grey copy, upright, over white, of 64 to 127 pixels on the shorter side (or fewer, as it comes)."""
    turn = _turn(image)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGB")
    if (factor := min(image.size) // (2 * SIDE)) > 1:
        image = image.reduce(factor)
    image = image.convert("L")
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return UPRIGHT.get(image.getexif().get(TAG, 1))
    except (OSError, ValueError, *_BROKEN):
        return None  # broken EXIF says nothing


def _pixels(grey: Image.Image, side: int) -> np.ndarray:
    return np.asarray(grey.resize((side, side), Image.Resampling.LANCZOS))


def _steps(grey: np.ndarray) -> np.ndarray:
    return np.concatenate([np.diff(grey, axis=0).ravel(), np.diff(grey, axis=1).ravel()])
