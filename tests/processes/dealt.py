"""Steps of the project's own loop over micro-batches that are dealt to ranks from one global batch."""

from pathlib import Path
from typing import Any

from data_pipeline.batch import IGNORE, Batch
from modalities import CASES, ROWS, Case, draw_batch, run_on, stage_of
from trainer.config import Stage
from trainer.distributed import World
from trainer.engine.guard import Guard
from trainer.run import Run

STEPS, LR, CLIP = 3, 2e-3, 0.3
EVERYTHING = Case(
    train={"connector": 2.0, "language": 0.5, "new_tokens": 1.0},
    model=CASES["all trained"].model,
    stage={"lr": LR, "schedule": "linear", "warmup_steps": 1, "min_lr_ratio": 0.5, "clip": CLIP},
)


def micro_batch(step: int, number: int) -> Batch:
    """Of a global batch in their order; target counts differ, and one micro-batch of step 1 has none."""
    batch = draw_batch(step, 0, number)
    batch.labels[:, : 2 * number] = IGNORE
    if (step, number) == (1, 0):
        batch.labels[:] = IGNORE
    return batch


class Dealt:
    """The stream of one rank: its micro-batches of each global batch."""

    imbalance, fill, samples = (1.0, 1.0), 1.0, ""

    def __init__(self, rank: int, accumulation: int) -> None:
        self.first, self.accumulation, self.step = rank * accumulation, accumulation, 0
        self.skipped: dict[str, int] = {}
        self.rows: tuple[tuple[()], ...] = ((),) * accumulation

    def ready(self, seconds: float) -> bool:
        return True

    def next(self) -> list[Batch]:
        self.step += 1
        return [micro_batch(self.step - 1, self.first + n) for n in range(self.accumulation)]

    def state_dict(self) -> dict[str, int]:
        return {"ledger": 0, "window": 0, "row": self.step}


def stage_for(count: int, **keys: Any) -> Stage:
    """The stage whose global batch is `count` micro-batches. Every step looks whether ranks drifted apart."""
    keys = {"global_batch": ROWS * count, "guard": Guard(check_every=1), **keys}
    return stage_of(EVERYTHING, 1, STEPS).model_copy(update=keys)


def run_of(
    world: World, zero: dict[str, Any], accumulation: int, directory: Path = Path("/nowhere"), **keys: Any
) -> Run:
    """A Run of EVERYTHING (all ranks) in fp32; `keys` are of the stage."""
    stage, stream = stage_for(world.size * accumulation, **keys), Dealt(world.rank, accumulation)
    return run_on(world, EVERYTHING, stage, stream, zero, accumulation=accumulation, directory=directory)
