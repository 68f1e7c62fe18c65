"""How far an update moves the weights: what the optimizer made of the gradients, by module."""

import deepspeed
import torch

from trainer.engine.fragments import trained_weights


class Move:
    """Begun before an update, and read after it (all ranks): each rank copies what it owns to the host."""

    def __init__(self, engine: deepspeed.DeepSpeedEngine) -> None:
        self._engine = engine
        self.modules = tuple(
            sorted({_module(name) for name, p in engine.module.named_parameters() if p.requires_grad})
        )
        """Alike on all ranks, whatever they own."""
        self._before = {f.name: f.saved()[1].to("cpu", copy=True) for f in trained_weights(engine)}

    def squares(self) -> list[float]:
        """Of each of `modules`, the squared length of this rank's part of the move, then of the weights that
        it began at: sums over all ranks are those of the whole."""
        moved, length = dict.fromkeys(self.modules, 0.0), dict.fromkeys(self.modules, 0.0)
        for f in trained_weights(self._engine):
            before, module = self._before[f.name].to(f.values.device), _module(f.name)
            moved[module] += _square(f.saved()[1] - before)
            length[module] += _square(before)
        return [*moved.values(), *length.values()]


def _module(name: str) -> str:
    return name.split(".")[0]


def _square(values: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2
