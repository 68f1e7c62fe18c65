"""The door before the weights: a step is admitted or refused when its gradient norm is known.

DeepSpeed finds the norm inside of its step. Here it is asked for there, before anything is updated; a refused
step takes the road that DeepSpeed has for overflows, which drops the gradients and leaves all else as it was.
"""

import math
from collections.abc import Callable, Iterable

import deepspeed
import torch
from deepspeed.runtime.utils import combine_grad_norm_groups
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import safe_get_full_grad
from torch import nn

from data_pipeline.errors import PreflightError


class Gate:
    """`step` in place of the engine's own at the end of an accumulation."""

    def __init__(self, engine: deepspeed.DeepSpeedEngine) -> None:
        self._engine = engine
        self._admit: Callable[[float], bool] = lambda norm: True
        self._norm: float | None = None
        self._admitted = True
        self._plain = False
        self._update: Callable[[], object] = lambda: None
        optimizer = engine.optimizer
        match optimizer:
            case DeepSpeedZeroOptimizer_Stage3():
                self._norms = optimizer._get_norm_groups
                optimizer._get_norm_groups = self._of_groups
            case DeepSpeedZeroOptimizer():
                self._whole = optimizer.scaled_global_norm
                optimizer.scaled_global_norm = self._of_all
            case torch.optim.Optimizer():
                self._plain, self._update = True, optimizer.step
                optimizer.step = self._update_if_admitted  # type: ignore[method-assign, assignment]  # on purpose
            case _:
                raise PreflightError(
                    f"DeepSpeed gives the optimizer {type(optimizer).__name__}, whose gradient norm is not "
                    "known before its step.\n  Choose ZeRO 1, 2 or 3, or ZeRO 0 in float32, in ds_config."
                )

    def step(self, admit: Callable[[float], bool]) -> float:
        """Update the weights if `admit(norm)`, and return the norm (all ranks). The norm is before clipping,
        and infinite where a gradient is not finite.

        `admit` must give the same answer on all ranks. It is not asked where fp16's loss scaling discards the
        step: a norm that overflows is how it finds its scale.
        """
        self._admit, self._norm = admit, None
        optimizer = self._engine.optimizer
        if self._plain:
            self._ask_for_all()
        elif isinstance(optimizer, DeepSpeedZeroOptimizer) and not self._engine.fp16_enabled():
            # ZeRO 1 and 2 ask for no norm where they look at each gradient first.
            optimizer.check_grad_overflow = False
        self._engine.step()
        return math.inf if self._norm is None else self._norm

    def _asked(self, norm: float) -> bool:
        self._norm = norm
        self._admitted = self._admit(norm)
        return self._admitted

    def _of_groups(self) -> list[torch.Tensor]:
        norms = self._norms()
        norm = combine_grad_norm_groups(norms)
        admitted = self._asked(float(norm) / self._engine.optimizer.loss_scale)
        return norms if admitted else [torch.full_like(norm, math.inf)]

    def _of_all(self) -> torch.Tensor:
        norm = self._whole()
        if self._asked(float(norm) / self._engine.optimizer.loss_scale):
            return norm
        # In bf16 this is what makes ZeRO 1 and 2 heed a norm that is not finite.
        self._engine.optimizer.check_grad_overflow = True
        return torch.full_like(norm, math.inf)

    def _ask_for_all(self) -> None:
        """Before DeepSpeed clips what a plain optimizer of ZeRO 0 then takes."""
        grads = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        norm = float(nn.utils.get_total_norm(grads))
        self._asked(norm if math.isfinite(norm) else math.inf)

    def _update_if_admitted(self) -> None:
        if self._admitted:
            self._update()


def norms_by_module(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, float]:
    """Gradient norm of each module (the first part of names), before clipping (all ranks, within `admit`)."""
    squares: dict[str, float] = {}
    for name, p in parameters:
        if p.requires_grad:
            grad = safe_get_full_grad(p)
            module = name.split(".")[0]
            squares[module] = squares.get(module, 0.0) + (
                0.0 if grad is None else float(grad.double().square().sum())
            )
    return {module: math.sqrt(square) for module, square in squares.items()}
