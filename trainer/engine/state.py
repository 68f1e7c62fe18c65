"""What a resumed run must know beside weights and optimizer: plain JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.engine.guard import Memory


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """The position after `step` steps. `stream` is the data's own state, free of rank counts, `guard` what
    the guard remembers.

    No random state is kept: what is random at a step is seeded by (seed, step, rank).
    """

    step: int = 0
    tokens: int = 0
    stream: dict[str, Any] = field(default_factory=dict)
    guard: Memory = field(default_factory=Memory)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "TrainState":
        return cls(**{**raw, "guard": Memory.from_json(raw.get("guard", {}))})
