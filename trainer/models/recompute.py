"""Activation checkpointing: layers whose activations are made again in the backward pass instead of kept."""

from collections.abc import Mapping
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from trainer.models.config import Recomputed

EVERY_LAYER: Mapping[Recomputed, int] = {"vision": 1, "connector": 1, "cross_attention": 1, "language": 1}


def recompute(module: nn.Module, every: int) -> None:
    """Recompute the layers 0, `every`, 2 * `every`, ... of `module`, while it trains.

    Non-reentrant only: the reentrant kind drops gradients behind frozen inputs without an error.
    """
    layers = [m for m in module.modules() if isinstance(m, GradientCheckpointingLayer)]
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = number % every == 0
        # As transformers sets it, on a module whose attributes torch types as tensors and modules.
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]
