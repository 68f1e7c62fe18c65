"""The tensors that a model gets.

Legend: B rows, T positions a row, N images, P patches of all images, p pixels of a patch's side.
Rows are packed: several documents stand in one row, and no document sees another. Images are packed too: each
has as many patches as its own size gives. An image here is one tile: a picture, or a quarter of a split one.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

IGNORE = -100
"""Label of a position that is not a target (torch's own default in cross-entropy)."""

PAD_DOCUMENT = 0
"""Document id of padding; real documents count from 1 within their row."""

_ON_HOST = ("grids", "sample_ids")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch of one rank.

    `labels[b, t]` is the token to be predicted *at* position t, that is the one at t + 1 of the same
    document, or IGNORE: the shift is made where documents are known, not in the model.
    Images stand in the order of their spans, row by row: the visual tokens of image n fill the positions
    where `image_ids == n + 1`.
    """

    input_ids: "torch.Tensor"  # int64[B, T]; the image token's id at visual positions
    labels: "torch.Tensor"  # int64[B, T]
    positions: "torch.Tensor"  # int64[B, T]; from 0 in each document
    document_ids: "torch.Tensor"  # int64[B, T]; PAD_DOCUMENT where padded
    image_ids: "torch.Tensor"  # int64[B, T]; 1 + index into grids at visual positions, else 0
    patches: "torch.Tensor"  # uint8[P, 3, p, p]; grey levels, image after image, row by row; P may be 0
    patch_index: "torch.Tensor"  # int64[P, 3]; (image, row, column) of each patch
    grids: tuple[tuple[int, int], ...] = ()  # N times (rows, columns) of patches, on the host
    sample_ids: tuple[tuple[str, ...], ...] = ()  # per row, the samples in it, in order

    @property
    def target_tokens(self) -> int:
        return int((self.labels != IGNORE).sum())

    def to(self, device: "torch.device | str") -> "Batch":
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name not in _ON_HOST}
        return Batch(**moved, grids=self.grids, sample_ids=self.sample_ids)
