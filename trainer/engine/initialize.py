"""A module and its parameter groups under DeepSpeed."""

from collections.abc import Sequence
from typing import Any

import deepspeed
import torch
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
from deepspeed.utils import set_z3_leaf_module
from torch import nn


def initialize(
    model: nn.Module,
    groups: Sequence[dict[str, Any]],
    config: dict[str, Any],
    *,
    lr: float,
    betas: tuple[float, float],
    whole: Sequence[nn.Module] = (),
) -> deepspeed.DeepSpeedEngine:
    """The engine over `model` (all ranks). `groups` say what is trained; each may carry an `lr_scale`.

    ZeRO-3 gathers the weights of each module of `whole` at once, not layer by layer inside of it.
    """
    for module in whole:
        set_z3_leaf_module(module, True)
    without_shared_memory_operator()
    optimizer = torch.optim.AdamW([dict(g) for g in groups], lr=lr, betas=betas)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


def without_shared_memory_operator() -> None:
    """To be called before DeepSpeed first communicates on a machine without a GPU."""
    if not torch.cuda.is_available():
        # It would compile a shared-memory all-reduce at the first start. A rank killed meanwhile leaves the
        # compiler's lock behind, and every later start waits for it; gloo needs none of it.
        deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False


def set_lr(engine: deepspeed.DeepSpeedEngine, lr: float) -> None:
    """The learning rate of every group: `lr` times the group's own scale."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
