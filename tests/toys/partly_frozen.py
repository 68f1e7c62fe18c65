"""A model of two layers under ZeRO-3, of which one is frozen."""

from typing import Any

import torch
from torch import nn

from trainer.engine.fragments import held
from trainer.engine.initialize import initialize


def engine_of(width: int = 5) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("frozen", nn.Linear(9, width).requires_grad_(False))
    model.add_module("trained", nn.Linear(width, width))
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    groups = [{"params": [*model.trained.parameters()]}]
    return initialize(model, groups, config, lr=0.1, betas=(0.9, 0.9))


def take_a_step(engine: Any) -> None:
    engine.backward(engine(torch.ones(1, 9, dtype=torch.bfloat16)).square().sum())
    engine.step()


def values_of(engine: Any) -> dict[str, torch.Tensor]:
    """Copies of all that this rank holds: weights and moments."""
    return {f.key: f.values.clone() for f in held(engine).fragments}
