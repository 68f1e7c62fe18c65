"""How the language model attends under a mask of ours: dense masks by SDPA, block masks by FlexAttention.

Shapes: B rows, H heads, G key and value heads, Q queries, T keys, d a head's width.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


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
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **others
        )
    if dropout:
        raise ValueError(f"attention_dropout is {dropout} in the LM's config; FlexAttention allows 0 only")
    attend = _compiled() if query.is_cuda and not torch.compiler.is_compiling() else flex_attention
    grouped = query.shape[1] != key.shape[1]
    out = attend(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous(), None


@cache
def _compiled() -> Callable[..., torch.Tensor]:
    return torch.compile(flex_attention, dynamic=False)


ATTENTION = "fovea_under_mask"
"""The name of `attend_under_mask` among transformers' attention functions."""

AttentionInterface.register(ATTENTION, attend_under_mask)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)  # of the LM's own forward, called without our mask
