"""The learning rate as a pure function of the step."""

import math


def lr_factor(
    step: int, *, steps: int, warmup_steps: int, schedule: str, min_ratio: float, decay_share: float = 0.2
) -> float:
    """Share of the peak learning rate at `step` (from 0): linear warm-up, then the schedule's decay.

    The last step, `steps - 1`, gets `min_ratio`, but under `constant`. Under `wsd` (warm-up, stable, decay:
    arXiv 2404.06395) the rate stays at its peak until the last `decay_share` of all steps, then falls evenly.
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
        case "wsd":
            decaying = max(1, min(round(decay_share * steps), steps - warmup_steps))
            shape = min(1.0, (steps - 1 - step) / decaying)
        case _:
            raise ValueError(f"schedule {schedule!r}: allowed are constant, linear, cosine, wsd")
    return min_ratio + (1.0 - min_ratio) * shape
