"""Rows of documents to the tensors of a Batch, every promise of the Batch checked on the way."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data_pipeline.batch import IGNORE, PAD_DOCUMENT, Batch
from data_pipeline.errors import DataError
from data_pipeline.image_spec import ImageSpec
from data_pipeline.stream.chat import Rendered
from data_pipeline.stream.decode import Picture
from data_pipeline.stream.tokens import Tokenizer


@dataclass(frozen=True, eq=False)
class Piece:
    """The tokens of one document of a row, and where they come from."""

    sample_id: str
    source: str
    index: int
    tokens: Rendered


@dataclass(frozen=True, eq=False)
class Document:
    """A piece with its pictures decoded, one for each span. `muted`: none of its tokens is a target."""

    piece: Piece
    pictures: tuple[Picture, ...] = ()
    muted: bool = False


def collate(
    rows: Sequence[Sequence[Document]],
    *,
    tokenizer: Tokenizer,
    image: ImageSpec,
    image_tokens: int,
    sequence_length: int,
) -> Batch:
    """B = len(rows) rows of `sequence_length` positions. Raises DataError naming the sample at fault."""
    shape = (len(rows), sequence_length)
    input_ids = np.full(shape, tokenizer.pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORE, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    document_ids = np.full(shape, PAD_DOCUMENT, dtype=np.int64)
    image_ids = np.zeros(shape, dtype=np.int64)
    counted = np.arange(sequence_length)
    pictures: list[Picture] = []
    for b, row in enumerate(rows):
        start = 0
        for number, document in enumerate(row, start=1):
            tokens = document.piece.tokens
            _check(document, tokenizer, image, image_tokens, sequence_length - start)
            at = slice(start, start + len(tokens))
            input_ids[b, at] = tokens.input_ids
            labels[b, at] = _labels(document)
            positions[b, at] = counted[: len(tokens)]
            document_ids[b, at] = number
            if document.pictures:
                image_ids[b, at] = np.where(tokens.image_ids > 0, tokens.image_ids + len(pictures), 0)
                pictures.extend(document.pictures)
            start = at.stop
    patches, patch_index = flat(pictures, image)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        positions=torch.from_numpy(positions),
        document_ids=torch.from_numpy(document_ids),
        image_ids=torch.from_numpy(image_ids),
        patches=patches,
        patch_index=patch_index,
        grids=tuple(p.grid for p in pictures),
        sample_ids=tuple(tuple(d.piece.sample_id for d in row) for row in rows),
    )


def flat(pictures: Sequence[Picture], image: ImageSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """The patches of all pictures, one after another: uint8[P, 3, p, p], and int64[P, 3] where each stands.

    Raises DataError where one was not made by `image`: on the accelerator that is a crash without a name.
    """
    for number, picture in enumerate(pictures):
        if fault := _misfit(picture, image):
            raise DataError(f"picture {number}: {fault}")
    count = sum(rows * columns for rows, columns in (picture.grid for picture in pictures))
    patches = np.empty((count, 3, image.patch, image.patch), dtype=np.uint8)
    index = np.empty((count, 3), dtype=np.int64)
    end = 0
    for n, picture in enumerate(pictures):
        rows, columns = picture.grid
        at = slice(end, end := end + rows * columns)
        patches[at].reshape(picture.blocks.shape)[:] = picture.blocks
        index[at, 0] = n
        index[at, 1], index[at, 2] = divmod(np.arange(rows * columns), columns)
    return torch.from_numpy(patches), torch.from_numpy(index)


def _labels(document: Document) -> np.ndarray:
    """int64[L]: at position t the token at t + 1 where that is a target; the last position has none."""
    tokens = document.piece.tokens
    labels = np.full(len(tokens), IGNORE, dtype=np.int64)
    if not document.muted:
        labels[:-1] = np.where(tokens.loss[1:], tokens.input_ids[1:], IGNORE)
    return labels


def _check(document: Document, tokenizer: Tokenizer, image: ImageSpec, image_tokens: int, room: int) -> None:
    """Here, where the sample's name is known: on the accelerator each of these is a crash without one."""
    piece, tokens = document.piece, document.piece.tokens
    where = f"sample {piece.sample_id} of source '{piece.source}' (index {piece.index})"
    if len(tokens) > room:
        raise DataError(f"{where}: {len(tokens)} tokens, the row has room for {room}")
    ids = tokens.input_ids
    if len(ids) and not (ids.min() >= 0 and ids.max() < len(tokenizer)):
        raise DataError(f"{where}: token ids {ids.min()}..{ids.max()}, allowed are 0..{len(tokenizer) - 1}")
    if tokens.loss[:1].any() or not tokenizer.may_be_target[ids[tokens.loss]].all():
        raise DataError(f"{where}: a visual or first token is marked as a target")
    if not np.array_equal(ids == tokenizer.image_id, tokens.image_ids > 0):
        raise DataError(f"{where}: image tokens stand outside the image spans")
    spans = np.bincount(tokens.image_ids, minlength=1)[1:]
    if len(spans) != len(document.pictures) or (spans != image_tokens).any():
        raise DataError(
            f"{where}: {len(document.pictures)} pictures of {image_tokens} tokens each, "
            f"but spans of {spans.tolist()}"
        )
    for picture in document.pictures:
        if fault := _misfit(picture, image):
            raise DataError(f"{where}: {fault}")


def _misfit(picture: Picture, image: ImageSpec) -> str | None:
    """Why no tower of `image` takes this picture; None where it does."""
    (rows, columns), p = picture.grid, image.patch
    if not 1 <= min(rows, columns) <= max(rows, columns) <= image.largest_grid:
        return f"a picture of {rows} x {columns} patches, allowed are 1 to {image.largest_grid} a side"
    if picture.blocks.shape[2:] != (3, p, p) or picture.blocks.dtype != np.uint8:
        return (
            f"patches {picture.blocks.dtype} of {picture.blocks.shape[2:]}, expected are uint8 of {(3, p, p)}"
        )
    return None
