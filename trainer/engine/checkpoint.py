"""Checkpoints that are whole or not there: `STAGE/checkpoints/step_000100/COMPLETE.json` is written last.

DeepSpeed writes its shards into a temporary directory; rank 0 hashes them, writes COMPLETE.json, and renames
the directory into place. DeepSpeed's own `latest` file is neither written nor read.
A shard is executable pickle: none is opened before its digest, its owner and its mode were checked.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed

from data_pipeline.errors import DataError
from data_pipeline.manifest import fsync_directory, sha256_file, write_json
from trainer.distributed import World, barrier
from trainer.engine.state import TrainState

COMPLETE = "COMPLETE.json"
TAG = "engine"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was found whole. `fingerprints` say of which recipe, data and tokenizer it is."""

    path: Path
    step: int
    world_size: int
    state: TrainState
    fingerprints: dict[str, Any]


def directory_of(stage_dir: Path, step: int) -> Path:
    return stage_dir / "checkpoints" / f"step_{step:06d}"


def save(
    engine: deepspeed.DeepSpeedEngine,
    stage_dir: Path,
    state: TrainState,
    fingerprints: dict[str, Any],
    world: World,
    keep: int,
) -> Path:
    """Write and commit the checkpoint of `state.step` (all ranks), then let go of the oldest ones."""
    final = directory_of(stage_dir, state.step)
    temporary = final.with_name(final.name + ".tmp")
    if world.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    barrier(world)
    engine.save_checkpoint(str(temporary), tag=TAG, save_latest=False)
    barrier(world)
    if world.is_main:
        files = {}
        for file in sorted(p for p in temporary.rglob("*") if p.is_file()):
            file.chmod(0o600)
            with file.open("rb+") as f:
                os.fsync(f.fileno())
            files[str(file.relative_to(temporary))] = {
                "nbytes": file.stat().st_size,
                "sha256": sha256_file(file),
            }
        record = {
            "format": _FORMAT,
            "step": state.step,
            "world_size": world.size,
            "state": state.to_json(),
            "fingerprints": fingerprints,
            "files": files,
        }
        write_json(temporary / COMPLETE, record)
        shutil.rmtree(final, ignore_errors=True)
        temporary.replace(final)
        fsync_directory(final.parent)
        _retain(final.parent, keep)
    barrier(world)
    return final


def newest(stage_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a line for each newer one that does not."""
    rejected = []
    for path in reversed(_committed(stage_dir / "checkpoints")):
        try:
            return verify(path), rejected
        except DataError as e:
            rejected.append(str(e))
    return None, rejected


def verify(path: Path) -> Checkpoint:
    """The checkpoint at `path`. Raises DataError unless each file has its recorded size, digest and owner."""
    path = Path(path)
    try:
        record = json.loads((path / COMPLETE).read_text(encoding="utf-8"))
        files: dict[str, dict[str, Any]] = record["files"]
        state = TrainState.from_json(record["state"])
    except FileNotFoundError:
        raise DataError(f"{path} is no complete checkpoint: it has no {COMPLETE}.") from None
    except (ValueError, KeyError, TypeError) as e:
        raise DataError(f"{path / COMPLETE} is damaged: {e}.") from None
    for name, expected in files.items():
        file = path / name
        if not file.resolve().is_relative_to(path.resolve()) or not file.is_file():
            raise DataError(f"checkpoint {path}: the file {name} is missing.")
        stat = file.stat()
        if stat.st_uid != os.getuid() or stat.st_mode & 0o022:
            raise DataError(
                f"checkpoint {path}: {name} belongs to another user or is writable by others, "
                "and such a file could run code when it is opened.\n"
                f"  If you trust it: chown and chmod 600 the files of {path}."
            )
        if stat.st_size != expected["nbytes"]:
            raise DataError(
                f"checkpoint {path}: {name} has {stat.st_size:,} bytes, "
                f"{COMPLETE} says {expected['nbytes']:,}."
            )
        if sha256_file(file) != expected["sha256"]:
            raise DataError(f"checkpoint {path}: {name} was altered (its sha256 is not the recorded one).")
    return Checkpoint(
        path=path,
        step=record["step"],
        world_size=record["world_size"],
        state=state,
        fingerprints=record["fingerprints"],
    )


def load(engine: deepspeed.DeepSpeedEngine, checkpoint: Checkpoint) -> None:
    """Weights, optimizer and step count of a verified checkpoint into the engine (all ranks)."""
    loaded, _ = engine.load_checkpoint(str(checkpoint.path), tag=TAG)
    if loaded is None:
        # DeepSpeed only warns here and would train on from the weights it was built with.
        raise DataError(f"DeepSpeed found nothing to load in {checkpoint.path}.")


def _committed(checkpoints: Path) -> list[Path]:
    """Directories that were renamed into place, oldest first; `.tmp` is what a kill left of a save."""
    return sorted(
        (p for p in checkpoints.glob("step_*") if p.name.removeprefix("step_").isdigit()),
        key=lambda p: int(p.name.removeprefix("step_")),
    )


def _retain(checkpoints: Path, keep: int) -> None:
    """Delete all but the newest `keep`; the newest was committed before this is called."""
    for old in _committed(checkpoints)[:-keep]:
        # Without its marker the directory is no checkpoint, whatever a kill leaves of it.
        (old / COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)
