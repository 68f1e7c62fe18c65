"""Recipe + stage -> Run: every part of a training run, built once, top to bottom.

A run directory holds a whole recipe, one directory a stage:

    RUN/run.json  recipe.resolved.yaml  env.json  report.html
    RUN/STAGE/metrics.jsonl  parameters.json  events.jsonl  checkpoints/step_*/COMPLETE.json  eval/step_*/
    RUN/STAGE/origin.json  incidents/step_*/
"""

import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import deepspeed
import psutil
import torch

from data_pipeline.errors import ConfigError, DataError, PreflightError
from data_pipeline.manifest import sha256_file, write_json
from data_pipeline.stream.datasets import Datasets
from data_pipeline.stream.loader import Stream
from data_pipeline.stream.tokens import Tokenizer
from trainer.config import Recipe, Stage, dump_recipe
from trainer.distributed import World, barrier
from trainer.engine import checkpoint
from trainer.engine.ds_config import merge_ds_config, read_ds_config
from trainer.engine.fragments import refuse_out_of_reach
from trainer.engine.gate import Gate
from trainer.engine.initialize import initialize, require
from trainer.engine.sharding import Shards, shards_parameters
from trainer.engine.state import TrainState
from trainer.figures import Figures
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.models.config import Model
from trainer.models.freeze import Counted, count_parameters, freeze, parameter_groups
from trainer.models.gradients import GradientCheck
from trainer.models.kernels import fuse, liger_kernels
from trainer.models.moe.experts import require_backend
from trainer.models.regions import compile_regions
from trainer.observe.sinks import JsonlSink, Screen, Sink
from trainer.observe.trackers import chosen, open_trackers
from trainer.sizes import refuse_other_backbones
from trainer.stage_stream import open_datasets, open_stream
from trainer.start import load_parts, start, start_sharded

NOT_COMPARED = {
    "guard",
    "watchdog",
    "checkpoint_every",
    "keep_checkpoints",
    "checkpoint_async",
    "checkpoint_staging",
    "evaluate",
    "gate",
    "compile",
    "kernels",
}
"""Stage fields that may change between a checkpoint and its resume."""

HOW_COMPUTED = {"ds_config", "micro_batch", "activation_checkpointing"}
"""Stage fields that the weights which a later stage starts from depend on by rounding alone."""

ORIGIN = "origin.json"
"""Its name in a stage's directory: which checkpoint the stage started from."""


@dataclass(kw_only=True)
class Run:
    """The parts of one stage's training. `state` is the only one that the loop replaces."""

    recipe: Recipe
    stage: Stage
    stage_dir: Path
    world: World
    accumulation: int
    stream: Stream
    engine: deepspeed.DeepSpeedEngine
    gate: Gate
    state: TrainState
    fingerprints: dict[str, Any]
    parameters: tuple[Counted, ...]
    gradients: GradientCheck
    figures: Figures
    sinks: list[Sink]
    frozen: Path | None = None
    """Where the frozen weights are saved already."""
    lost: int = 0
    """Steps beyond the checkpoint that an earlier attempt took, and this one takes again (main rank)."""
    tokenizer: Tokenizer | None = None


def build_run(
    recipe: Recipe, stage: Stage, run_dir: Path, world: World, *, accept_changed_data: bool = False
) -> Run:
    """All parts, on all ranks. Starting points, in order: 1 a checkpoint of this stage, 2 `init_from`.

    With `accept_changed_data` a checkpoint may have been trained on other data than there is now.
    """
    trackers = chosen(recipe.observe.trackers)
    torch.manual_seed(recipe.seed)
    if recipe.model.moe is not None:
        require_backend(recipe.model.moe.backend)
    accumulation = stage.accumulation(world.size)
    config = merge_ds_config(
        read_ds_config(stage.ds_config, world.size),
        micro_batch=stage.micro_batch,
        accumulation=accumulation,
        world_size=world.size,
        clip=stage.clip,
    )
    require(config)

    datasets = open_datasets(recipe, run_dir)
    backbones = run_dir / recipe.backbones.path
    shards = Shards(config) if shards_parameters(config) else None
    refuse_other_backbones(recipe, backbones)
    model, tokenizer = load_parts(recipe.model_of(stage), backbones, stage.mask, shards is not None)
    _set_forward(model, stage)
    fingerprints = fingerprints_of(recipe, stage, datasets, tokenizer)

    stage_dir = run_dir / stage.name
    found, rejected = checkpoint.newest_for_all(stage_dir, world)
    if world.is_main:
        _say_rejected(stage_dir, rejected, found)
    if found is None and rejected:
        raise DataError(
            f"{stage_dir} has checkpoints, but none that verifies:\n  " + "\n  ".join(rejected) + "\n"
            "  To start the stage again from its beginning, move that directory away."
        )
    if found is not None:
        _refuse_other_run(found, fingerprints, accept_changed_data)

    before = None
    if found is None and stage.init_from != "backbones":
        before = finished_checkpoint(recipe, run_dir, stage.init_from)
        _refuse_other_training(recipe.stage(stage.init_from), before)
    if shards is None:
        start(model, before, stage.train)
    else:
        start_sharded(model, before, stage.train, backbones, shards, world)
    freeze(model, stage.train)
    parameters = count_parameters(model, stage.train)
    model.enable_activation_checkpointing(stage.activation_checkpointing)
    regions = compile_regions(model) if stage.compile else []
    groups = parameter_groups(model, stage.train, lr=stage.lr, weight_decay=stage.weight_decay)
    engine = initialize(model, groups, config, lr=stage.lr, betas=stage.betas, whole=regions)
    refuse_out_of_reach(engine)

    stream = open_stream(recipe, stage, run_dir, datasets, tokenizer, rank=world.rank, world_size=world.size)
    state = TrainState()
    if found is not None:
        checkpoint.load(engine, found, world)
        stream.load_state_dict(found.state.stream, accept_changed_data)
        state = found.state

    sinks: list[Sink] = []
    lost = 0
    if world.is_main:
        write_run_records(recipe, run_dir, world, config)
        _note_origin(stage_dir, before)
        write_json(stage_dir / "parameters.json", {"modules": [c.to_json() for c in parameters]})
        sinks.append(lines := JsonlSink(stage_dir / "metrics.jsonl", resume_step=state.step))
        lost = lines.lost
        sinks.append(Screen(stage.name, state.step, stage.steps))
        page = {"seed": recipe.seed, "model": fingerprints["model"], "stage": fingerprints["stage"]}
        sinks.extend(open_trackers(trackers, stage_dir, recipe.name, page))
    barrier(world)
    return Run(
        recipe=recipe,
        stage=stage,
        stage_dir=stage_dir,
        world=world,
        accumulation=accumulation,
        stream=stream,
        engine=engine,
        gate=Gate(engine),
        state=state,
        fingerprints=fingerprints,
        parameters=parameters,
        gradients=GradientCheck(engine.module),
        figures=Figures(recipe, stage, engine.module, world),
        sinks=sinks,
        lost=lost,
        tokenizer=tokenizer,
        frozen=found.frozen.path if found and found.frozen else None,
    )


def finished_checkpoint(recipe: Recipe, run_dir: Path, name: str) -> checkpoint.Checkpoint:
    """The last checkpoint of a finished stage. Raises PreflightError where the stage is not finished."""
    stage = recipe.stage(name)
    found, rejected = checkpoint.newest(run_dir / name)
    if found is None or found.step < stage.steps:
        at = "has no checkpoint" if found is None else f"stands at step {found.step} of {stage.steps}"
        raise PreflightError(
            f"the weights of stage '{name}' are needed, and it {at} in {run_dir}.\n"
            + "".join(f"  {line}\n" for line in rejected)
            + f"  Finish it first:  fovea train RECIPE --stage {name} --run {run_dir}\n"
            f"  or, on a cluster:  RUN={run_dir} sbatch slurm/stage{recipe.stages.index(stage) + 1}.sh"
        )
    return found


def write_run_records(recipe: Recipe, run_dir: Path, world: World, config: dict[str, Any]) -> None:
    """run.json, recipe.resolved.yaml and env.json: what is needed to repeat the run."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "recipe.resolved.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    write_json(
        run_dir / "run.json",
        {
            "name": recipe.name,
            "updated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "recipe": "recipe.resolved.yaml",
            "seed": recipe.seed,
            "world_size": world.size,
            "zero_stage": config.get("zero_optimization", {}).get("stage", 0),
        },
    )
    packages = ("torch", "deepspeed", "transformers", "peft", "tokenizers", "datatrove", "pyarrow", "pillow")
    write_json(
        run_dir / "env.json",
        {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            **{p: version(p) for p in packages},
        },
    )


def _note_origin(stage_dir: Path, before: checkpoint.Checkpoint | None) -> None:
    """Which checkpoint of an earlier stage this one starts from; trained anew, that makes this one stale."""
    if before is not None:
        stage, digest = before.path.parents[1].name, sha256_file(before.path / checkpoint.COMPLETE)
        write_json(stage_dir / ORIGIN, {"stage": stage, "step": before.step, "checkpoint": digest})


def _set_forward(model: AutoregressiveVLM, stage: Stage) -> None:
    """What the stage says of the forward pass, apart from the mask."""
    model.neftune_alpha = stage.neftune_alpha
    if stage.kernels == "liger":
        fuse(model.language, liger_kernels())


def fingerprints_of(recipe: Recipe, stage: Stage, datasets: Datasets, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a checkpoint must share with the run that resumes from it."""
    return {
        "seed": recipe.seed,
        "model": recipe.model_of(stage).model_dump(mode="json"),
        "stage": {k: v for k, v in stage.model_dump(mode="json").items() if k not in NOT_COMPARED},
        "data": datasets.digest,
        "tokenizer": tokenizer.fingerprint,
    }


def _refuse_other_run(found: checkpoint.Checkpoint, ours: dict[str, Any], accept_changed_data: bool) -> None:
    theirs = {**found.fingerprints, **({"data": ours["data"]} if accept_changed_data else {})}
    changed = changes(theirs, ours)
    if changed:
        raise ConfigError(
            f"{found.path} is of another run:\n  " + "\n  ".join(changed) + "\n"
            "  Undo the change to resume, or train into another --run directory."
            + (_CHANGED_DATA if theirs.get("data") != ours["data"] else "")
        )


def _refuse_other_training(stage: Stage, before: checkpoint.Checkpoint) -> None:
    """Raises ConfigError where the recipe says another training of the earlier `stage` than it had.

    Model and data may be others: a dense stage is upcycled, and data are built for the stage to come.
    """
    theirs, ours = (
        {k: v for k, v in page.items() if k not in NOT_COMPARED | HOW_COMPUTED}
        for page in (before.fingerprints["stage"], stage.model_dump(mode="json"))
    )
    if changed := stage_changes(theirs, ours):
        raise ConfigError(
            f"{before.path} is what this stage starts from, and was trained by another recipe:\n  "
            + "\n  ".join(changed)
            + "\n  Undo the change (overrides are to be the same for each stage of a run), or train "
            f"'{stage.name}' anew:  mv {before.path.parents[1]} {before.path.parents[1]}.old"
        )


def changes(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """A line for each difference between two fingerprints, the first of a checkpoint."""
    # Keys that are newer than the checkpoint have their defaults.
    model = Model.model_validate(theirs["model"]).model_dump(mode="json")
    return [
        *_differ("model", model, ours["model"]),
        *stage_changes(theirs.get("stage", {}), ours["stage"]),
        *(
            f"{part}: {theirs.get(part)!r} in the checkpoint, {ours[part]!r} now"
            for part in ("seed", "data", "tokenizer")
            if theirs.get(part) != ours[part]
        ),
    ]


def stage_changes(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """A line for each difference between what a checkpoint says of its stage, and what is said now."""
    defaults = {k: f.default for k, f in Stage.model_fields.items() if k in ours and not f.is_required()}
    return _differ("stage", defaults | theirs, ours)


def _differ(part: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [
        f"{part}.{key}: {old.get(key)!r} in the checkpoint, {new.get(key)!r} now"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


_CHANGED_DATA = (
    "\n  To go on with the data as it is now, its order begun anew:  --accept-changed-data (what was seen "
    "before may come again)"
)


def _say_rejected(stage_dir: Path, rejected: list[str], found: checkpoint.Checkpoint | None) -> None:
    if not rejected:
        return
    lost = None
    if found is not None:
        moved = checkpoint.set_aside(stage_dir, found.step)
        lost = max(checkpoint.step_of(path) for path in moved) - found.step
        sys.stderr.write(
            f"fovea: {stage_dir.name}: {rejected[0]}\n"
            f"  {lost} steps are trained again, from the checkpoint of step {found.step} on. "
            f"Set aside: {', '.join(path.name for path in moved)}\n"
        )
    with (stage_dir / "events.jsonl").open("a", encoding="utf-8") as f:
        for line in rejected:
            event = {"time": time.time(), "event": "checkpoint rejected", "reason": line}
            resumed = {"resumed_from": found.step if found else None, "steps_lost": lost}
            f.write(json.dumps({**event, **resumed}) + "\n")
