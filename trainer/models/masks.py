"""Who sees whom in packed rows: one predicate, for dense masks and for FlexAttention's block masks alike.

    causal       nothing ahead
    image_full   the visual tokens of an image see one another
    prefix_full  so does every run of tokens that are given, not written: pictures and prompt

Shapes: B rows, T positions a row.
"""

from collections.abc import Callable
from functools import cache
from typing import Literal, get_args

import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from data_pipeline.batch import IGNORE, PAD_DOCUMENT

MaskKind = Literal["causal", "image_full", "prefix_full"]
Predicate = Callable[..., torch.Tensor]
"""(b, h, q, k) -> bool: may position q of row b attend to position k? Indices broadcast together."""


def full_blocks(kind: MaskKind, image_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """image_ids, labels int64[B, T] -> int64[B, T]: positions of a document with the same number see one
    another whatever their order; 0 sees nothing ahead.

    A token is written where the label before it names it as a target, else given. A document's prefix (of
    PaliGemma, arXiv 2407.07726, figure 2) is its first run of given tokens: it ends at the position that
    predicts the first target. In a dialogue each later question is a run of its own. It sees all before it;
    were it part of the prefix, the first answer would see a question that nobody has asked yet. Visual tokens
    are never targets, so each image lies in one run.
    """
    match kind:
        case "causal":
            return torch.zeros_like(image_ids)
        case "image_full":
            return image_ids
        case "prefix_full":
            written = F.pad(labels[:, :-1] != IGNORE, (1, 0))
            return torch.where(written, 0, 1 + written.cumsum(1))
    raise ValueError(f"mask '{kind}' is not known; allowed are {', '.join(get_args(MaskKind))}")


def allowed(document_ids: torch.Tensor, blocks: torch.Tensor, window: int | None = None) -> Predicate:
    """document_ids, blocks (`full_blocks`) int64[B, T] -> the predicate.

    A position sees itself, what stands before it in its own document, and its own block. Padding sees itself
    only: a softmax over nothing is NaN. `window` is the LM's own sliding window: nothing reaches further, in
    either direction.
    """

    def see(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        document, block = document_ids[b, q], blocks[b, q]
        together = (document == document_ids[b, k]) & (document != PAD_DOCUMENT)
        visible = (k <= q) | ((block == blocks[b, k]) & (block != 0))
        if window is not None:
            visible = visible & (q - k < window) & (k - q < window)
        return (together & visible) | (q == k)

    return see


def mask_of(see: Predicate, rows: int, length: int, device: torch.device) -> torch.Tensor | BlockMask:
    """`see` as the language model's layers take it, made once and shared by all of them.

    On CUDA FlexAttention's block mask, elsewhere a dense one: FlexAttention has no backward pass on the CPU.
    """
    if device.type == "cuda":
        return block_mask(see, rows, length, device)
    return dense_mask(see, rows, length, device)


def dense_mask(
    see: Predicate,
    rows: int,
    length: int,
    device: torch.device | str,
    first_query: int = 0,
) -> torch.Tensor:
    """bool[B, 1, T - first_query, T], True where attention is allowed: what SDPA takes.

    With a cache only the last positions are queries: `first_query` says from which on.
    """
    index = torch.arange(length, device=device)
    row = torch.arange(rows, device=device)
    head = torch.zeros((), dtype=torch.int64, device=device)
    return see(row[:, None, None, None], head, index[first_query:, None], index[None, :])


def block_mask(see: Predicate, rows: int, length: int, device: torch.device | str) -> BlockMask:
    """The blocks of 128 x 128 positions that hold anything to attend to: what FlexAttention takes.

    Compiled on CUDA, where the mask of T x T never stands in memory. Rows have one length a stage, and a
    predicate is compiled for its code, not for the tensors that it closes over: once a stage.
    """
    create = _compiled_create() if torch.device(device).type == "cuda" else create_block_mask
    return create(see, rows, None, length, length, device=str(device))


@cache
def _compiled_create() -> Callable[..., BlockMask]:
    return torch.compile(create_block_mask, dynamic=False)
