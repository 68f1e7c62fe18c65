"""How far a step moves the weights, against whole weights before and after it."""

import math

import deepspeed
import pytest
import torch
from torch import nn

from ranks import on_ranks
from trainer.distributed import World, all_sum
from trainer.engine.initialize import initialize
from trainer.engine.moves import Move


def moved(world: World, zero: int) -> tuple[dict[str, float], dict[str, float]]:
    """Norms of the move and of the weights before it: by Move, and from weights gathered whole."""
    torch.manual_seed(0)
    layers = {
        "first": nn.Linear(7, 5),
        "frozen": nn.Linear(5, 5).requires_grad_(False),
        "last": nn.Linear(5, 3),
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    groups = [{"params": [*model.first.parameters()]}, {"params": [*model.last.parameters()], "lr": 0.5}]
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": zero, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    engine = initialize(model, groups, config, lr=0.1, betas=(0.9, 0.9))

    def whole() -> dict[str, torch.Tensor]:
        parameters = [p for p in engine.module.parameters() if p.requires_grad]
        with deepspeed.zero.GatheredParameters(parameters, enabled=zero == 3):
            return {
                name: torch.cat([p.detach().reshape(-1).clone() for p in layer.parameters()])
                for name, layer in engine.module.named_children()
                if name != "frozen"
            }

    for step in range(2):
        before, move = whole(), Move(engine)
        engine.backward(engine(torch.full((1, 7), 1.0 + world.rank + step)).square().sum())
        engine.step()
    squares = iter(all_sum(world, *move.squares()))
    found = {
        f"{what} {module}": math.sqrt(next(squares)) for what in ("moved", "was") for module in move.modules
    }
    after = whole()
    want = {f"moved {name}": float((after[name] - w).norm()) for name, w in before.items()}
    return found, want | {f"was {name}": float(w.norm()) for name, w in before.items()}


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_norms_of_parts_sum_to_those_of_whole_weights(zero):
    for found, want in on_ranks(moved, zero):
        assert found.keys() == want.keys()
        assert found == pytest.approx(want, rel=1e-5)
        assert min(want.values()) > 0.1
