"""What the MoE benchmarks measure: a dense gated FFN, and experts of one backend, drawn alike."""

import torch
from torch import nn

from trainer.models.moe.experts import Experts


class FFN(nn.Module):
    """A gated FFN of bias-free layers, as Mistral's."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def experts_like(ffn: FFN, experts: int, backend: str) -> Experts:
    return Experts(ffn, experts, backend).to(ffn.gate_proj.weight)


def routed(tokens: int, experts: int, top_k: int, skew: float, device: str) -> tuple[torch.Tensor, ...]:
    """Gates float32[N, k] and chosen int64[N, k]; with `skew` above 0 the first experts get more."""
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(tokens, experts, generator=draw) - skew * torch.arange(experts)
    best, chosen = scores.topk(top_k)
    return best.softmax(-1).to(device), chosen.to(device)
