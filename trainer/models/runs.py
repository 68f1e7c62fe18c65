"""Attention within parts of one flat sequence: neighbours of one length are one batch, and cost one call.

Shapes: P positions, H heads, G key and value heads, d a head's width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Run:
    """`count` parts of `length` positions, one after another; in each, a position sees what `mask` allows
    (bool[length, length]), or where that is None, all of its part, or if `causal`, what stands before it."""

    count: int
    length: int
    mask: torch.Tensor | None = None
    causal: bool = False


def attend_in_runs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    runs: Sequence[Run],
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """query [P, H, d], key and value [P, G, d], of all runs in order -> [P, H, d]."""
    grouped = query.shape[1] != key.shape[1]
    sizes = [run.count * run.length for run in runs]
    # A single part would be copied on the way back.
    parts = [t.split(sizes) if len(sizes) > 1 else (t,) for t in (query, key, value)]
    seen = []
    for run, *three in zip(runs, *parts, strict=True):
        q, k, v = (t.unflatten(0, (run.count, run.length)).transpose(1, 2) for t in three)
        out = F.scaled_dot_product_attention(
            q, k, v, run.mask, dropout, is_causal=run.causal, scale=scaling, enable_gqa=grouped
        )
        seen.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(seen) if len(seen) > 1 else seen[0]
