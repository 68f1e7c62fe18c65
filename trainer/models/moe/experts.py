"""The experts of a layer, side by side in three parameters, and the ways to send tokens through them.

Stacked, each is gathered and reduced whole under ZeRO-3, by all ranks in the same order: a rank none of whose
tokens goes to an expert waits for nobody, and nobody for it.

Shapes: N tokens, k experts of a token, E experts, D the language model's width, H the FFN's inner width.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F

from data_pipeline.errors import ConfigError
from trainer.models.moe.config import Backend

ALIGNED = 8
"""Widths are multiples of it, except under `loop`: the kernels read 16 bytes of bfloat16 at once."""

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def require_backend(backend: Backend) -> None:
    """Raises ConfigError where training cannot multiply by it on this machine."""
    if backend == "megablocks" and not (torch.cuda.is_available() and find_spec("megablocks")):
        raise ConfigError(
            "model.moe.backend is megablocks, which needs CUDA and the package, with its grouped_gemm: "
            "pip install 'fovea-vlm[moe]'\n"
            "  Or take PyTorch's own product, which gives the same: model.moe.backend=grouped"
        )


class GatedFFN(Protocol):
    """The FFN of Mistral, Llama and Qwen in transformers, without biases."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear
    act_fn: nn.Module


class Experts(nn.Module):
    """E gated FFNs. Each begins as a copy of `dense` (arXiv 2212.05055)."""

    def __init__(self, dense: GatedFFN, experts: int, backend: Backend) -> None:
        super().__init__()
        self.backend = backend
        self.act_fn = dense.act_fn

        def copies(linear: nn.Linear) -> nn.Parameter:
            return nn.Parameter(linear.weight.detach().repeat(experts, 1, 1))

        self.gate_proj, self.up_proj = copies(dense.gate_proj), copies(dense.up_proj)  # [E, H, D]
        self.down_proj = copies(dense.down_proj)  # [E, D, H]

    def forward(self, x: torch.Tensor, gates: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """x [N, D], gates [N, k], chosen int64[N, k] -> [N, D], the chosen experts' outputs, gated."""
        match self.backend:
            case "loop":
                return self._loop(x, gates, chosen)
            case "megablocks" if self.training:
                return self._megablocks(x, gates, chosen)
        # Also what was trained with megablocks is evaluated so: any machine can.
        return self._grouped(x, gates, chosen)

    def _ffn(self, x: torch.Tensor, product: Product) -> torch.Tensor:
        inner = self.act_fn(product(x, self.gate_proj)) * product(x, self.up_proj)
        return product(inner, self.down_proj)

    def _loop(self, x: torch.Tensor, gates: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """One expert after the other: the reference."""
        out = torch.zeros_like(x)
        for expert in range(len(self.gate_proj)):
            tokens, slots = (chosen == expert).nonzero(as_tuple=True)
            y = self._ffn(x[tokens], partial(_product, expert))
            out = out.index_add(0, tokens, y * gates[tokens, slots, None])
        return out

    def _grouped(self, x: torch.Tensor, gates: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """All experts in one product: tokens sorted by expert, where each expert's end in `ends`.

        Each row is gathered once, so the backward pass adds nothing up by atomics: it is deterministic.
        """
        tokens, k = chosen.shape
        experts, order = chosen.flatten().sort(stable=True)
        ends = torch.searchsorted(
            experts, torch.arange(len(self.gate_proj), device=x.device), right=True, out_int32=True
        )
        mine = x[:, None].expand(-1, k, -1).flatten(0, 1).index_select(0, order)
        y = self._ffn(mine, lambda x, w: F.grouped_mm(x, w.transpose(-2, -1), offs=ends))
        back = torch.empty_like(order).scatter_(0, order, torch.arange(tokens * k, device=x.device))
        return (y.index_select(0, back).unflatten(0, (tokens, k)) * gates[..., None]).sum(dim=1)

    def _megablocks(self, x: torch.Tensor, gates: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """megablocks' gather, product and scatter (github.com/databricks/megablocks): bfloat16 on CUDA."""
        from megablocks import grouped_gemm_util, ops  # noqa: PLC0415  (optional package)

        k, flat, count = chosen.shape[1], chosen.flatten().int(), len(self.gate_proj)
        with torch.no_grad():
            experts, order = ops.sort(flat, max(1, (count - 1).bit_length()))
            sizes = ops.histogram(flat, count)
            ends = ops.inclusive_cumsum(sizes, 0)
            sizes = sizes.cpu().to(torch.int64)  # grouped_gemm reads it on the host: one wait a layer
        mine = ops.gather(x, order, experts, ends, k)
        y = self._ffn(mine, lambda x, w: grouped_gemm_util.ops.gmm(x, w, sizes, trans_b=True))
        return ops.scatter(y, order, experts, gates.flatten(), ends, k)


def _product(expert: int, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weights[expert])
