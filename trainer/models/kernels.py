"""Liger's Triton kernels (arXiv 2410.10989) in the language model: each RMSNorm and SwiGLU in one pass.

The loss stays target_loss(): Liger's fused one multiplies by the head's weight itself, which ZeRO-3 gathers
for the head's own forward pass alone. RoPE stays torch's: transformers calls it as a function of its file,
so that it could only be replaced for all models at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Protocol, cast

import torch
from transformers import PreTrainedModel

from data_pipeline.errors import ConfigError, PreflightError
from trainer.models.language import body_of
from trainer.models.moe.experts import GatedFFN
from trainer.models.moe.layer import MoELayer

EXACT = ("llama", "mistral", "qwen2", "qwen3")
"""Model types of transformers whose norms work in float32 and cast back before the weight multiplies."""


@dataclass(frozen=True)
class Kernels:
    """What takes the place of torch's operators. In the backward pass `silu_mul` may overwrite its inputs."""

    rms_norm: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    """x [..., D], weight [D], epsilon -> [..., D]"""
    silu_mul: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """gate [..., H], up [..., H] -> silu(gate) * up"""


def liger_kernels() -> Kernels:
    """Raises PreflightError where they cannot run on this machine."""
    missing = [
        *(() if torch.cuda.is_available() else ("a CUDA device",)),
        *(() if find_spec("liger_kernel") else ("the package liger-kernel: pip install 'fovea-vlm[gpu]'",)),
    ]
    if missing:
        raise PreflightError(
            f"kernels is liger, which needs {', and '.join(missing)}.\n"
            "  Or take torch's own operators, which give the same: kernels=torch in that stage"
        )
    from liger_kernel.ops import LigerRMSNormFunction, LigerSiLUMulFunction  # noqa: PLC0415  (optional)

    def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        # No offset; the cast as Llama's; not into the incoming gradient, which others may yet read.
        return LigerRMSNormFunction.apply(x, weight, epsilon, 0.0, "llama", False)

    return Kernels(rms_norm, LigerSiLUMulFunction.apply)


def fuse(language: PreTrainedModel, kernels: Kernels) -> None:
    """Put them into the forward passes of its RMSNorms and dense FFNs, in place; names of weights stay.

    Linear layers are called as before, adapters and all; experts (model.moe) keep their own products. Raises
    ConfigError for a language model that the kernels would not reproduce.
    """
    kind, activation = language.config.model_type, getattr(language.config, "hidden_act", None)
    if kind not in EXACT or activation != "silu":
        raise ConfigError(
            f"kernels is liger, which reproduces language models of the types {', '.join(EXACT)} with silu; "
            f"this one is {kind} with {activation}.\n  Set kernels=torch in that stage."
        )
    for module in language.base_model.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = partial(_norm, cast(_RMSNorm, module), kernels.rms_norm)
    for layer in body_of(language).layers:
        ffn = layer.get_submodule("mlp")
        if not isinstance(ffn, MoELayer):
            ffn.forward = partial(_gated, cast(GatedFFN, ffn), kernels.silu_mul)


class _RMSNorm(Protocol):
    weight: torch.Tensor
    variance_epsilon: float


def _norm(
    norm: _RMSNorm,
    kernel: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor],
    hidden_states: torch.Tensor,
) -> torch.Tensor:
    return kernel(hidden_states, norm.weight, norm.variance_epsilon)


def _gated(
    ffn: GatedFFN, kernel: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    return ffn.down_proj(kernel(ffn.gate_proj(x), ffn.up_proj(x)))
