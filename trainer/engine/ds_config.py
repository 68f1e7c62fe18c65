"""DeepSpeed's configuration: its own JSON for sharding and communication, merged with what the stage owns."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from data_pipeline.errors import ConfigError, nearest
from trainer.engine.ds_keys import Page

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
    "activation_checkpointing": "activation_checkpointing",
    "compile": "compile",
    "checkpoint": "checkpoint_every, keep_checkpoints",
    "data_efficiency": "mixture",
    "steps_per_print": "nothing: the loop logs",
    "tensorboard": "nothing: the loop logs",
    "wandb": "nothing: the loop logs",
    "csv_monitor": "nothing: the loop logs",
    "zero_allow_untested_optimizer": "nothing: the optimizer is torch's AdamW",
    "zero_force_ds_cpu_optimizer": "nothing: the optimizer is torch's AdamW",
    "gradient_allreduce_op": "nothing: the loss is one mean over the targets of all ranks",
    "managed_gradient_accumulation": "nothing: the loop says where a step ends",
    "bf16.check_grad_overflow": "guard: it judges every gradient norm before the update",
    "zero_optimization.compute_grad_norm": "guard: it judges every gradient norm before the update",
    "zero_optimization.leaf_module": "nothing: the model says what is gathered at once",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": "nothing: fovea export gathers by tensors",
    "zero_optimization.zero_quantized_nontrainable_weights": "nothing: frozen weights keep their precision",
}


def read_ds_config(name: str, ranks: int | None = None) -> dict[str, Any]:
    """The JSON of that name in ds_configs/, or at that path; `ranks`: how many will train with it.

    Raises ConfigError, with every fault, where it does not exist, is not JSON, holds keys that the recipe
    owns or that nobody knows, contradicts itself, or does not fit that number of ranks.
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
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: an object of DeepSpeed's keys is expected, not {type(config).__name__}")
    owned = [f"{k} (a stage says it: {by})" for k, by in OWNED_BY_RECIPE.items() if _holds(config, k)]
    if owned:
        raise ConfigError(f"{path}: the recipe owns these keys, remove them here:\n  " + "\n  ".join(owned))
    try:
        page = Page.model_validate(config)
    except ValidationError as e:
        raise ConfigError(f"{path}:\n  " + "\n  ".join(_faults(e))) from None
    _refuse_ranks(path, page, ranks)
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


def _holds(config: dict[str, Any], key: str) -> bool:
    part, _, last = key.rpartition(".")
    section = config.get(part) if part else config
    return isinstance(section, dict) and last in section


def _refuse_ranks(path: Path, page: Page, ranks: int | None) -> None:
    size = page.zero_optimization.zero_hpz_partition_size
    if ranks is not None and ranks % size:
        divisors = ", ".join(str(n) for n in range(1, ranks + 1) if ranks % n == 0)
        raise ConfigError(
            f"{path}: zero_optimization.zero_hpz_partition_size {size} does not divide {ranks} ranks.\n"
            f"  Allowed: {divisors}; take the GPUs of one node."
        )


def _faults(error: ValidationError) -> list[str]:
    """A line for each: path, what is wrong, what is allowed."""
    lines = []
    for e in error.errors():
        *parents, last = ("", *map(str, e["loc"]))
        where = ".".join([*parents, last])[1:] or "as a whole"
        if e["type"] == "extra_forbidden":
            allowed = _keys(Page, parents[1:])
            meant = nearest(last, allowed) or f" (allowed: {', '.join(allowed)})"
            lines.append(f"{where}: a key that Fovea does not take{meant}")
        elif e["input"] == "auto":
            lines.append(f"{where}: 'auto' is another tool's; write the value, or leave the key out")
        else:
            got = "" if isinstance(e["input"], dict | BaseModel) else f" (got {e['input']!r})"
            lines.append(f"{where}: {e['msg'].removeprefix('Value error, ')}{got}")
    return lines


def _keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """The keys of the section at `path`."""
    for part in path:
        section = model.model_fields[part].annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        model = section
    return sorted(model.model_fields)
