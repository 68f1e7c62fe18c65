"""DeepSpeed's configuration: its own JSON for sharding and communication, merged with what the stage owns."""

import json
from pathlib import Path
from typing import Any

from data_pipeline.errors import ConfigError, nearest

_HERE = Path(__file__).resolve()
# Beside the packages in a checkout, inside `trainer` in an installed wheel.
_FOLDERS = (_HERE.parents[2] / "ds_configs", _HERE.parents[1] / "ds_configs")

OWNED_BY_RECIPE = {
    "train_batch_size": "global_batch",
    "train_micro_batch_size_per_gpu": "micro_batch",
    "gradient_accumulation_steps": "global_batch / (ranks * micro_batch)",
    "gradient_clipping": "clip",
    "optimizer": "lr, betas, weight_decay",
    "scheduler": "schedule, warmup_steps",
    "steps_per_print": "nothing: the loop logs",
}


def read_ds_config(name: str) -> dict[str, Any]:
    """The JSON of that name in ds_configs/, or at that path.

    Raises ConfigError where it does not exist, is not JSON, or holds a key that the recipe owns.
    """
    shipped = {p.stem: p for folder in _FOLDERS for p in sorted(folder.glob("*.json"))}
    path = Path(name) if Path(name).is_file() else shipped.get(name)
    if path is None:
        raise ConfigError(
            f"ds_config '{name}' is neither a file nor a name in ds_configs/{nearest(name, shipped)}\n"
            f"  Names: {', '.join(shipped)}"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ConfigError(f"{path}: not JSON: {e}") from None
    owned = [f"{k} (a stage says it: {OWNED_BY_RECIPE[k]})" for k in config if k in OWNED_BY_RECIPE]
    if owned:
        raise ConfigError(f"{path}: the recipe owns these keys, remove them here:\n  " + "\n  ".join(owned))
    return dict(config)


def merge_ds_config(
    config: dict[str, Any], *, micro_batch: int, accumulation: int, world_size: int, clip: float
) -> dict[str, Any]:
    """`config` with the batch triple and the clipping norm of the stage."""
    return {
        **config,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro_batch * accumulation * world_size,
        "gradient_clipping": clip,
        "steps_per_print": 10**9,
        # The optimizer is torch's own, which DeepSpeed calls untested and on the CPU would replace.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
