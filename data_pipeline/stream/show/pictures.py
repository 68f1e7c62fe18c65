"""Pictures for a page: tiles put together again from a batch's patches, and who sees whom in a row."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_pipeline.batch import PAD_DOCUMENT, Batch
from data_pipeline.stream.decode import GREY

_LOSSLESS = 128  # pixels of the longer side up to which a picture is kept as it is
_LARGEST = 512  # of a larger one after scaling down: a page holds many
_MASK = 320
_MISSING = (255, 0, 255)

COLOURS = ((36, 87, 214), (194, 65, 12), (15, 118, 110), (147, 51, 234), (161, 98, 7), (190, 24, 93))
"""Of documents, in turn; the page's style sheet has the same."""
_NONE = (128, 128, 128)


@dataclass(frozen=True)
class Tile:
    """`number` counts in the batch from 0. `uri` holds its pixels; `notes` say what is odd about them."""

    number: int
    rows: int
    columns: int
    width: int  # pixels that the model gets
    height: int
    uri: str
    notes: tuple[str, ...] = ()


def tile(batch: Batch, number: int) -> Tile:
    """Tile `number` of a batch, each patch where `patch_index` says that it stands."""
    pixels, notes = tile_pixels(batch, number)
    rows, columns = batch.grids[number]
    height, width = pixels.shape[:2]
    return Tile(number, rows, columns, width, height, _uri(Image.fromarray(pixels)), notes)


def tile_pixels(batch: Batch, number: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """uint8[height, width, 3], magenta where no patch stands, and what is odd about the tile."""
    rows, columns = batch.grids[number]
    mine = (batch.patch_index[:, 0] == number).numpy()
    index, patches = batch.patch_index.numpy()[mine], batch.patches.numpy()[mine]
    p = patches.shape[-1]
    grid = np.empty((rows, columns, p, p, 3), dtype=np.uint8)
    grid[:] = _MISSING
    inside = (index[:, 1] < rows) & (index[:, 2] < columns)
    grid[index[inside, 1], index[inside, 2]] = patches[inside].transpose(0, 2, 3, 1)
    notes = []
    if len({(r, c) for _, r, c in index[inside].tolist()}) != rows * columns or not inside.all():
        notes.append(f"{len(patches)} patches for {columns} × {rows} places")
    if len(patches) and (patches == GREY).all():
        notes.append("grey: stands in for a picture that could not be read")
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * p, columns * p, 3), tuple(notes)


def mask_picture(mask: np.ndarray, documents: np.ndarray) -> str:
    """bool[T, T] (who sees whom) and int64[T] -> a data URI: a line for each position that looks, in the
    colour of its document, the stronger the more it sees. Transparent where it sees nothing.
    """
    length = len(documents)
    of_cell = -(-length // _MASK)
    starts = np.arange(0, length, of_cell)
    # Rows first, in the bytes that they are: a mask has millions of places.
    seen = np.add.reduceat(np.add.reduceat(mask, starts, axis=0, dtype=np.uint16), starts, axis=1, dtype=int)
    sides = np.diff(np.append(starts, length))
    share = seen / (sides[:, None] * sides[None, :])
    line = documents[starts]
    colours = np.where(
        (line == PAD_DOCUMENT)[:, None], np.array(_NONE), np.array(COLOURS)[(line - 1) % len(COLOURS)]
    )
    picture = np.zeros((len(starts), len(starts), 4), dtype=np.uint8)
    picture[..., :3] = colours[:, None]
    picture[..., 3] = np.where(seen > 0, 90 + 165 * share, 0)  # a single pair in a cell is still seen
    return _uri(Image.fromarray(picture), lossless=True)


def _uri(image: Image.Image, lossless: bool = False) -> str:
    out = io.BytesIO()
    if lossless or max(image.size) <= _LOSSLESS:
        image.save(out, "PNG", optimize=True)
        mime = "image/png"
    else:
        image.thumbnail((_LARGEST, _LARGEST), Image.Resampling.BICUBIC)
        image.save(out, "JPEG", quality=82)
        mime = "image/jpeg"
    return f"data:{mime};base64,{base64.b64encode(out.getvalue()).decode()}"
