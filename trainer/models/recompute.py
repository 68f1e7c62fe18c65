"""Activation checkpointing: layers whose activations are made again in the backward pass instead of kept."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

EVERY_LAYER = {"vision": 1, "connector": 1, "cross_attention": 1, "language": 1}


def recompute(module: nn.Module, every: int) -> None:
    """Recompute the layers 0, `every`, 2 * `every`, ... of `module`, while it trains.

    Non-reentrant only: the reentrant kind drops gradients behind frozen inputs without an error.
    """
    layers = [m for m in module.modules() if isinstance(m, GradientCheckpointingLayer)]
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = number % every == 0
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
