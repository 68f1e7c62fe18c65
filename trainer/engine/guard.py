"""Which steps are bad, and what that leads to: numbers in, a verdict out. Imports no torch.

A step is bad where its loss or its gradient norm is not finite, or stands far above those of the good steps
before it. A ladder says what the first, the second, ... bad step in a row leads to.
"""

import math
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Action = Literal["skip", "skip_window", "rewind", "stop"]


class Guard(BaseModel):
    """The policy, as a recipe says it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ladder: tuple[Action, ...] = Field(
        ("skip", "skip", "skip", "stop"),
        min_length=1,
        description="what the first, the second, ... bad step in a row leads to; the last one is stop",
    )
    skip_window: int = Field(
        20, ge=1, description="steps of data that the rung skip_window passes over, beside the bad one's"
    )
    spike_z: float | None = Field(
        None,
        gt=0,
        description="robust z-score from which a loss or gradient norm is bad; null: any finite is good",
    )
    window: int = Field(100, ge=4, description="good steps that a spike is measured against")

    check_every: int | None = Field(
        100, ge=1, description="steps between two comparisons of what all ranks hold a copy of; null: none"
    )

    @field_validator("ladder")
    @classmethod
    def _ends(cls, ladder: tuple[Action, ...]) -> tuple[Action, ...]:
        if ladder[-1] != "stop" or "stop" in ladder[:-1]:
            raise ValueError("guard.ladder: 'stop' stands at its end, and nowhere else")
        return ladder


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What later verdicts depend on, part of a checkpoint. `losses` and `norms` are of the last good steps,
    `rung` counts the bad steps in a row, `furthest` is the last bad one."""

    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    rung: int = 0
    furthest: int = 0

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "Memory":
        windows: dict[str, Any] = {key: tuple(raw[key]) for key in ("losses", "norms") if key in raw}
        return cls(**(raw | windows))

    def after_good(self, guard: Guard, step: int, loss: float, norm: float) -> "Memory":
        """Past `furthest`, the next bad step is the first again: going back to it has led on."""
        memory = self if step <= self.furthest else replace(self, rung=0)
        if guard.spike_z is None or not math.isfinite(norm):  # fp16's scaling discards such a step
            return memory
        losses, norms = (*self.losses, loss), (*self.norms, norm)
        return replace(memory, losses=losses[-guard.window :], norms=norms[-guard.window :])

    def after_bad(self, step: int) -> "Memory":
        return replace(self, rung=self.rung + 1, furthest=max(self.furthest, step))


@dataclass(frozen=True, kw_only=True)
class Bad:
    """Why a step is bad. `value` of `what`; of a spike besides the window's median, z and its limit."""

    what: str
    value: float
    median: float | None = None
    z: float | None = None
    limit: float | None = None

    def __str__(self) -> str:
        if self.z is None:
            return f"the {self.what} is {self.value}"
        usual = f"{self.median:.4g} is usual (z {self.z:.1f} > {self.limit:g})"
        return f"the {self.what} is {self.value:.4g}, where {usual}"


def judge(guard: Guard, memory: Memory, loss: float, norm: float) -> Bad | None:
    """Why a step with that loss and gradient norm is bad, or None."""
    measured = (("loss", loss, memory.losses), ("gradient norm", norm, memory.norms))
    for what, value, _ in measured:
        if not math.isfinite(value):
            return Bad(what=what, value=value)
    for what, value, before in measured:
        if guard.spike_z is not None and len(before) >= guard.window:
            usual, z = robust_z(value, before)
            if z > guard.spike_z:
                return Bad(what=what, value=value, median=usual, z=z, limit=guard.spike_z)
    return None


def action(guard: Guard, memory: Memory) -> Action:
    """What a bad step leads to."""
    return guard.ladder[min(memory.rung, len(guard.ladder) - 1)]


def robust_z(value: float, window: tuple[float, ...]) -> tuple[float, float]:
    """The median of `window`, and how many robust standard deviations `value` stands above it.

    The deviation is 1.4826 times the median absolute deviation, a normal distribution's, and at least 1 % of
    the median: what hardly ever moves is not bad for moving a little.
    """
    usual = median(window)
    deviation = 1.4826 * median(abs(v - usual) for v in window)
    return usual, (value - usual) / max(deviation, 0.01 * abs(usual), 1e-12)
