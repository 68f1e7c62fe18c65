"""Who sees whom in packed rows: one predicate, for dense masks and for FlexAttention's block masks alike.

Shapes: B rows, T positions a row.
"""

from collections.abc import Callable
from typing import Literal

import torch

from data_pipeline.batch import PAD_DOCUMENT

MaskKind = Literal["causal", "image_full"]
Predicate = Callable[..., torch.Tensor]
"""(b, h, q, k) -> bool: may position q of row b attend to position k? Indices broadcast together."""


def allowed(
    document_ids: torch.Tensor, image_ids: torch.Tensor, kind: MaskKind, window: int | None = None
) -> Predicate:
    """document_ids, image_ids int64[B, T] -> the predicate of `kind`.

    `causal`: a position sees itself and what stands before it in its own document.
    `image_full`: besides, the visual tokens of an image all see one another.
    Padding sees itself only: a softmax over nothing is NaN. `window` is the LM's own sliding window.
    """
    if kind not in ("causal", "image_full"):
        raise ValueError(f"mask '{kind}' is not known; allowed are 'causal' and 'image_full'")

    def see(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        document = document_ids[b, q]
        together = (document == document_ids[b, k]) & (document != PAD_DOCUMENT)
        visible = k <= q
        if window is not None:
            visible = visible & (k > q - window)
        if kind == "image_full":
            image = image_ids[b, q]
            visible = visible | ((image == image_ids[b, k]) & (image != 0))
        return (together & visible) | (q == k)

    return see


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
