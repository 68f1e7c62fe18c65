"""What a picture shows, as far as arithmetic can tell: how plain it is, and how much text is written over it.

Both are scores of a thumbnail, kept as columns: whoever filters chooses the threshold later.
"""

import numpy as np
from PIL import Image, ImageChops

from data_pipeline.build.images.header import orientation
from data_pipeline.orientation import UPRIGHT

SIDE = 256  # pixels of the thumbnail's longer side: less, and small print is no longer seen
_NARROW = 64  # pixels of its shorter side at least, where the picture has them
_PLAIN = 8  # grey levels around the median colour that count as the same colour
_EDGE = 50  # grey levels between a pixel's left and right neighbours at the border of a letter
_STROKE = 6  # pixels, exclusive: how wide the stroke of a letter is
_CELL = 8  # pixels of a side of the cells in which strokes are counted
_BUSY = 4  # strokes' pixels in a cell of text
_LINE = 6  # cells in a row that make a line of text
_HALF = 0.02  # share of the picture under such lines at which the score is 0.5


def thumbnail(image: Image.Image, side: int = SIDE) -> Image.Image:
    """Decode an opened image, all of it, to RGB of at most `side` pixels: upright, alpha over white.

    A JPEG is unpacked at 1/2, 1/4 or 1/8 where that is enough: its stream is still read to the end.
    Raises what Pillow's decoders raise.
    """
    scale = min(1.0, max(side / max(image.size), _NARROW / min(image.size)))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image.draft("RGB", size)
    image.load()
    turn = UPRIGHT.get(orientation(image.info.get("exif")))
    if image.mode.startswith("I"):  # 16-bit grey: a plain conversion would clip it to white
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        small = _resize(image.convert("RGBA"), size)
        small = Image.alpha_composite(Image.new("RGBA", size, "white"), small).convert("RGB")
    elif image.mode in ("L", "RGB"):
        small = _resize(image, size).convert("RGB")
    else:
        small = _resize(image.convert("RGB"), size)
    small = small if turn is None else small.transpose(turn)
    small.info = {}  # else whoever takes the thumbnail would turn it once more
    return small


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def uniform(small: Image.Image) -> float:
    """Share of an RGB picture that has its median colour, within 8 grey levels: 1 for a blank image."""
    counts = np.array(small.histogram()).reshape(3, 256).cumsum(1)
    median = (counts * 2 < counts[:, -1:]).sum(1)
    near = np.abs(np.arange(256) - median[:, None]) <= _PLAIN
    red, green, blue = small.point((near * 255).ravel().tolist()).split()
    return ImageChops.darker(ImageChops.darker(red, green), blue).histogram()[255] / (
        small.width * small.height
    )


def text_overlay(small: Image.Image) -> float:
    """0 to 1: how much of a thumbnail lies under lines of letters; 0.5 at 2 % of its area.

    Letters are strokes of high contrast, a few pixels wide, close together along a line. Strokes are found
    as an edge followed by its opposite, counted in cells, and only long rows of busy cells count. Vertical
    writing and letters taller than a fifth of the picture are not seen; fences and blinds may look like text.
    """
    grey = np.asarray(small.convert("L"), dtype=np.int16)
    rows, columns = grey.shape[0] // _CELL, (grey.shape[1] - 2) // _CELL
    if rows < 1 or columns < _LINE:
        return 0.0
    slope = grey[:, 2:] - grey[:, :-2]
    steep = np.abs(slope)
    peak = np.zeros(slope.shape, dtype=bool)
    peak[:, 1:-1] = (steep[:, 1:-1] >= steep[:, :-2]) & (steep[:, 1:-1] > steep[:, 2:])
    rise, fall = peak & (slope > _EDGE), peak & (slope < -_EDGE)
    stroke = np.zeros(slope.shape, dtype=np.uint8)
    for width in range(2, _STROKE):
        stroke[:, :-width] |= rise[:, :-width] & fall[:, width:]
        stroke[:, :-width] |= fall[:, :-width] & rise[:, width:]
    cells = stroke[: rows * _CELL, : columns * _CELL].reshape(rows, _CELL, columns, _CELL)
    busy = cells.sum((1, 3), dtype=np.uint8) >= _BUSY
    starts = np.lib.stride_tricks.sliding_window_view(busy, _LINE, axis=1).all(2)
    line = np.zeros_like(busy)
    for offset in range(_LINE):
        line[:, offset : offset + starts.shape[1]] |= starts
    share = float(line.mean())
    return share / (share + _HALF)
