"""The learning rate as a pure function of the step."""

import math


def lr_factor(step: int, *, steps: int, warmup_steps: int, schedule: str, min_ratio: float) -> float:
    """Share of the peak learning rate at `step` (from 0): linear warm-up, then the schedule's decay.

    The last step, `steps - 1`, gets `min_ratio` (cosine and linear).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            shape = 1.0 - done
        case "cosine":
            shape = 0.5 * (1.0 + math.cos(math.pi * done))
        case _:
            raise ValueError(f"schedule {schedule!r}: allowed are constant, linear, cosine")
    return min_ratio + (1.0 - min_ratio) * shape
