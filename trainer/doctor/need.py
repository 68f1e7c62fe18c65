"""How many bytes the checkpoints of a recipe will take."""

from pathlib import Path

from trainer.config import Recipe
from trainer.engine import checkpoint
from trainer.sizes import sizes


def bytes_of_checkpoints(recipe: Recipe, run: Path) -> int | None:
    """What all stages together have still to write, each with one checkpoint more than it keeps.

    By the newest checkpoint of the stage, else by the shape that the recipe expects; None where neither says.
    """
    planned = _planned(recipe)
    total = 0
    for stage in recipe.stages:
        written, newest = _written(run / stage.name)
        size, frozen = (newest, 0) if newest else planned.get(stage.name, (0, 0))
        if not size:
            return None
        total += max(0, (stage.keep_checkpoints + 1) * size + frozen - written)
    return total


def _planned(recipe: Recipe) -> dict[str, tuple[int, int]]:
    """Of each stage (bytes of a checkpoint, bytes of what it leaves frozen), at most: float32 throughout."""
    if recipe.backbones.expects is None:
        return {}
    # A trained weight and the optimizer's two moments; a frozen weight.
    return {
        s.stage: (
            12 * sum(m.trainable for m in s.modules),
            4 * sum(m.parameters - m.trainable for m in s.modules),
        )
        for s in sizes(recipe)
    }


def _written(stage_dir: Path) -> tuple[int, int]:
    """Bytes of all checkpoints of a stage, and of the newest one."""
    each = [
        sum(f.stat().st_size for f in path.iterdir())
        for path in checkpoint.committed(checkpoint.checkpoints_dir(stage_dir))
    ]
    return sum(each), each[-1] if each else 0
