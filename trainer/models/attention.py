"""How the language model attends under a mask of ours: dense masks by SDPA, block masks by FlexAttention.

Shapes: B rows, H heads, G key and value heads, Q queries, T keys, d a head's width.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trainer.models.runs import Run, attend_in_runs

PIECE = 128
"""Positions of the smallest piece of a row that is worth a call of its own."""


def attend_under_mask(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | BlockMask | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """query [B, H, Q, d], key and value [B, G, T, d] -> [B, Q, H, d]; transformers calls it.

    Raises ValueError for attention dropout under a block mask: FlexAttention has none.
    """
    if not isinstance(attention_mask, BlockMask):
        if attention_mask is not None and _falls_apart(query, key):
            return _attend_in_pieces(query, key, value, attention_mask, scaling, dropout), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **others
        )
    if dropout:
        raise ValueError(f"attention_dropout is {dropout} in the LM's config; FlexAttention allows 0 only")
    attend: Callable[..., Any] = flex_attention
    if query.is_cuda and not torch.compiler.is_compiling():
        attend = _compiled()
    grouped = query.shape[1] != key.shape[1]
    out = attend(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous(), None


def _falls_apart(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Training on the CPU. Elsewhere masks are FlexAttention's; with a cache there are few queries."""
    length = query.shape[2]
    return length == key.shape[2] > PIECE and not query.is_cuda and not torch.compiler.is_compiling()


def _attend_in_pieces(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """The same under a dense mask, in pieces: a document costs its own length squared, not its row's."""
    # All rows one after another: a view of what the projections gave.
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))
    return attend_in_runs(q, k, v, _cut(mask), scaling, dropout).unflatten(0, (len(mask), -1))


@lru_cache(maxsize=1)  # all layers have one mask: by identity, as tensors are hashed
def _cut(mask: torch.Tensor) -> list[Run]:
    """All pieces, row after row; neighbours of one length together where they are causal, so need no mask."""
    causal = torch.ones(mask.shape[-2:], dtype=torch.bool).tril()
    runs: list[Run] = []
    for row, found in zip(mask[:, 0], pieces(mask), strict=True):
        for n, end in zip(found, accumulate(found), strict=True):
            # Two dimensions or four: under masks of others torch falls back to plain matrix products.
            piece = row[end - n : end, end - n : end]
            if not torch.equal(piece, causal[:n, :n]):
                runs.append(Run(1, n, piece))
                continue
            before = runs.pop().count if runs and runs[-1].causal and runs[-1].length == n else 0
            runs.append(Run(before + 1, n, causal=True))
    return runs


def pieces(mask: torch.Tensor) -> list[list[int]]:
    """mask bool[B, 1, T, T] -> for each row, the lengths of its pieces, in order: nobody sees across a cut.

    Neighbours below PIECE positions stay together: a call costs more than what it saves there.
    """
    length = mask.shape[-1]
    place = torch.arange(length, device=mask.device, dtype=torch.int32)
    last = (mask[:, 0] * place).amax(-1)  # seen from each position
    first = length - (mask[:, 0] * (length - place)).amax(-1)
    # Before a cut nobody looks beyond it, and from there on nobody looks back.
    ahead, back = last.cummax(1).values, first.flip(1).cummin(1).values.flip(1)
    cuts = (ahead[:, :-1] < place[1:]) & (back[:, 1:] >= place[1:])
    found = []
    for row in cuts:
        starts = [0]
        for cut in (row.nonzero().flatten() + 1).tolist():
            if cut - starts[-1] >= PIECE:
                starts.append(cut)
        found.append([b - a for a, b in pairwise([*starts, length])])
    return found


@cache
def _compiled() -> Callable[..., torch.Tensor]:
    return torch.compile(flex_attention, dynamic=False)


ATTENTION = "fovea_under_mask"
"""The name of `attend_under_mask` among transformers' attention functions."""

AttentionInterface.register(ATTENTION, attend_under_mask)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)  # of the LM's own forward, called without our mask
