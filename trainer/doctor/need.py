"""How many bytes the checkpoints of a recipe will take."""

from pathlib import Path

from trainer.config import Recipe
from trainer.engine import checkpoint
from trainer.engine.ds_config import read_ds_config
from trainer.engine.ds_keys import Page
from trainer.planning.memory import checkpoint_bytes
from trainer.planning.shape import shape_of


def bytes_of_checkpoints(recipe: Recipe, run: Path) -> int | None:
    """What all stages together have still to write; one checkpoint more is there before the oldest goes.

    By the newest checkpoint of the stage, else by the shape that the recipe expects; None where neither says.
    """
    total = largest = 0
    for stage in recipe.stages:
        written, size = _written(run / stage.name)
        frozen = 0
        if not size:
            if recipe.backbones.expects is None:
                return None
            page = Page.model_validate(read_ds_config(stage.ds_config))
            size, frozen = checkpoint_bytes(shape_of(recipe, stage).weights, page)
        total += max(0, stage.keep_checkpoints * size + frozen - written)
        largest = max(largest, size)
    return total + largest


def _written(stage_dir: Path) -> tuple[int, int]:
    """Bytes of all checkpoints of a stage, and of the newest one."""
    each = [
        sum(f.stat().st_size for f in path.iterdir())
        for path in checkpoint.committed(checkpoint.checkpoints_dir(stage_dir))
    ]
    return sum(each), each[-1] if each else 0
