"""Checkpoints that are whole or not there: `COMPLETE.json` comes last, before the directory gets its name.

    STAGE/checkpoints/step_000100/COMPLETE.json  rank_00000.safetensors  ...
    STAGE/checkpoints/frozen-1f0c2d.../COMPLETE.json  rank_00000.safetensors  ...

What is trained stands in the first, with the optimizer's moments. What the stage leaves frozen is written
once, in the second, to which every checkpoint of the stage refers. Each rank writes the fragments that it
owns; any number of ranks reads them.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deepspeed

from data_pipeline.errors import DataError
from data_pipeline.manifest import sha256_file
from trainer.distributed import World, all_sum_exactly, from_main
from trainer.engine.fragment_files import FragmentFiles, Sums, added, sums_of
from trainer.engine.fragments import Held, clear, held, refresh, set_counts
from trainer.engine.pins import pinned
from trainer.engine.state import TrainState

COMPLETE = "COMPLETE.json"
FORMAT = 2
UNFINISHED = ".tmp"
"""Ending of a directory that is being written, or that a kill left so."""

_STEP = re.compile(r"step_\d+")
_SET_ASIDE = ".corrupt"
VISIBLE_S = 60.0
_HASHING = 8  # threads: files are hashed outside of Python's lock


@dataclass(frozen=True, kw_only=True)
class Part:
    """A directory of fragments that verified. `tensors`: name -> shape, dtype, slot -> sums."""

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was found whole. `fingerprints` say of which recipe, data and tokenizer it is.

    `world_size` ranks wrote it. `counts` are the engine's own; `tied`: other name of a tensor -> its name.
    """

    path: Path
    step: int
    world_size: int
    state: TrainState
    fingerprints: dict[str, Any]
    counts: dict[str, Any] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    trained: Part | None = None
    frozen: Part | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(p for p in (self.trained, self.frozen) if p is not None)


def checkpoints_dir(stage_dir: Path) -> Path:
    return stage_dir / "checkpoints"


def directory_of(stage_dir: Path, step: int) -> Path:
    return checkpoints_dir(stage_dir) / f"step_{step:06d}"


def newest(stage_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a line for each newer one that does not."""
    rejected: list[str] = []
    for path in reversed(committed(checkpoints_dir(stage_dir))):
        try:
            return verify(path), rejected
        except DataError as e:
            rejected.append(str(e))
    return None, rejected


def newest_for_all(stage_dir: Path, world: World) -> tuple[Checkpoint | None, list[str]]:
    """As `newest` (all ranks): rank 0 looks, and no two ranks go on from different ones."""
    return from_main(world, newest(stage_dir) if world.is_main else None)


def verify(path: Path) -> Checkpoint:
    """The checkpoint at `path`, with its frozen weights. Raises DataError unless each file has its recorded
    size, digest and owner."""
    path = Path(path)
    record = _record(path)
    try:
        state = TrainState.from_json(record["state"])
        given = {key: record[key] for key in ("step", "world_size", "fingerprints", "counts", "tied")}
        frozen = path.with_name(record["frozen"]) if record["frozen"] else None
        trained = _verified(path, record)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise _damaged(path, e) from None
    return Checkpoint(
        path=path,
        state=state,
        trained=trained,
        frozen=verify_part(frozen) if frozen else None,
        **given,
    )


def verify_part(path: Path) -> Part:
    """The fragments in the directory `path`. Raises DataError as `verify` does."""
    record = _record(path)
    try:
        return _verified(path, record)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise _damaged(path, e) from None


def load(engine: deepspeed.DeepSpeedEngine, checkpoint: Checkpoint, world: World) -> None:
    """Weights, optimizer and step count of a verified checkpoint into the engine (all ranks), whatever number
    of ranks wrote it.

    Raises DataError where model and checkpoint hold different tensors, where a file is not to be seen, or
    where a tensor came out other than it was saved: its sums are taken again, over all ranks.
    """
    ours = held(engine)
    given = _given(checkpoint, ours)
    wait_until_visible([file for part in checkpoint.parts for file in part.files])
    clear(engine)
    found: dict[str, Sums] = {}
    for part in checkpoint.parts:
        near = world.rank * len(part.files) // world.size
        files = FragmentFiles(part.files, near)
        for f in (f for f in ours.fragments if f.name in part.tensors):
            values = files.read(f.key, f.start, f.values.numel())
            f.values.copy_(values)
            start, _ = f.saved()
            found[f.key] = sums_of(values[f.mine], start)
    set_counts(engine, checkpoint.counts)
    refresh(engine)
    keys = sorted(given)
    flat = all_sum_exactly(world, [part for key in keys for part in found.get(key, (0, 0))])
    wrong = [
        key
        for key, sums in zip(keys, zip(flat[::2], flat[1::2], strict=True), strict=True)
        if added([sums]) != given[key]
    ]
    if wrong:
        raise DataError(
            f"{checkpoint.path}: {len(wrong)} of {len(keys)} tensors came out other than they were saved: "
            f"{', '.join(wrong[:5])}{' …' if len(wrong) > 5 else ''}."
        )


def wait_until_visible(files: Iterable[Path], seconds: float = VISIBLE_S) -> None:
    """Files that rank 0 has verified may reach other machines later, on NFS by its caches' time.

    Raises DataError where one did not come.
    """
    deadline = time.monotonic() + seconds
    for file in files:
        while not file.exists():
            if time.monotonic() > deadline:
                raise DataError(
                    f"{file} is not to be seen on {socket.gethostname()} after {seconds:g} s, though rank 0 "
                    "has read it.\n  The run directory must be the same one on all nodes."
                )
            with contextlib.suppress(OSError):
                os.listdir(file.parent)  # makes an NFS client ask its server again
            time.sleep(0.1)


def committed(checkpoints: Path) -> list[Path]:
    """Directories that have their name, oldest first."""
    return sorted((p for p in checkpoints.glob("step_*") if _STEP.fullmatch(p.name)), key=step_of)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name, or in the name under which it was set aside."""
    return int(path.name.removeprefix("step_").partition(".")[0])


def set_aside(stage_dir: Path, beyond: int) -> list[Path]:
    """Give checkpoints after step `beyond`, none of which verifies, other names; returns these (rank 0)."""
    moved = []
    for path in committed(checkpoints_dir(stage_dir)):
        if step_of(path) > beyond:
            names = (path.with_name(f"{path.name}{_SET_ASIDE}{n or ''}") for n in range(1000))
            moved.append(path.rename(next(name for name in names if not name.exists())))
    return moved


def retain(checkpoints: Path, keep: int) -> None:
    """Delete what is older than the newest `keep` of which every file is there in its size, but for those
    that are pinned; and frozen weights that nothing left refers to.

    The newest was committed before this is called. Files are not read again: that is what a resume does.
    """
    all_of_them, pins = committed(checkpoints), pinned(checkpoints.parent)
    whole = [p for p in all_of_them if _is_there(p)]
    oldest = min(map(step_of, whole[-keep:]), default=0)
    kept = [p for p in all_of_them if step_of(p) >= oldest or p.name in pins]
    for old in all_of_them:
        if old not in kept:
            remove(old)
    try:
        used = {json.loads((p / COMPLETE).read_text("utf-8")).get("frozen") for p in kept}
    except (OSError, ValueError, AttributeError):
        return  # a damaged one may refer to anything
    for path in checkpoints.glob("frozen-*"):
        if path.name not in used:
            remove(path)


def _is_there(path: Path) -> bool:
    """Whether no file of the checkpoint or of its frozen weights is missing or cut short."""
    try:
        record = _record(path)
        parts = [(path, record)]
        if record["frozen"]:
            frozen = path.with_name(record["frozen"])
            parts.append((frozen, _record(frozen)))
        sizes = [(p / name, f["nbytes"]) for p, r in parts for name, f in r["files"].items()]
        return all(file.stat().st_size == nbytes for file, nbytes in sizes)
    except (DataError, OSError, KeyError, TypeError, AttributeError):
        return False


def remove(directory: Path) -> None:
    """Its marker first: without it the directory is no checkpoint, whatever a kill leaves of it."""
    (directory / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads((path / COMPLETE).read_text(encoding="utf-8"))
        written = record["format"]
    except FileNotFoundError:
        raise DataError(f"{path} is no complete checkpoint: it has no {COMPLETE}.") from None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise _damaged(path, e) from None
    if written != FORMAT:
        age = "an older" if isinstance(written, int) and written < FORMAT else "another"
        raise DataError(
            f"{path} was written by {age} Fovea (format {written}; this one reads {FORMAT}).\n"
            "  Export it with the version that wrote it, or finish the stage there."
        )
    return record


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path / COMPLETE} is damaged: {error}.")


def _verified(path: Path, record: dict[str, Any]) -> Part:
    files: dict[str, dict[str, Any]] = record["files"]
    try:
        with ThreadPoolExecutor(_HASHING) as threads:
            list(threads.map(lambda name: _verify_file(path, name, files[name]), files))
    except OSError as e:
        raise DataError(f"checkpoint {path} cannot be read: {e.strerror} ({e.filename}).") from None
    return Part(path=path, files=tuple(path / name for name in sorted(files)), tensors=record["tensors"])


def _verify_file(path: Path, name: str, expected: dict[str, Any]) -> None:
    file = path / name
    if not file.resolve().is_relative_to(path.resolve()) or not file.is_file():
        raise DataError(f"checkpoint {path}: the file {name} is missing.")
    stat = file.stat()
    if stat.st_uid != os.getuid() or stat.st_mode & 0o022:
        raise DataError(
            f"checkpoint {path}: {name} belongs to another user or is writable by others, "
            "and such a file may be exchanged after it was checked.\n"
            f"  If you trust it: chown and chmod 600 the files of {path}."
        )
    if stat.st_size != expected["nbytes"]:
        raise DataError(
            f"checkpoint {path}: {name} has {stat.st_size:,} bytes, {COMPLETE} says {expected['nbytes']:,}."
        )
    if sha256_file(file) != expected["sha256"]:
        raise DataError(f"checkpoint {path}: {name} was altered (its sha256 is not the recorded one).")


def _given(checkpoint: Checkpoint, ours: Held) -> dict[str, str]:
    """Key -> sums of the checkpoint's tensors. Raises DataError where they are not those of the model."""
    theirs = {name: tensor for part in checkpoint.parts for name, tensor in part.tensors.items()}
    wrong = [
        f"{name}: {theirs[name]['shape'] if name in theirs else 'missing'} in the checkpoint, "
        f"{list(ours.shapes[name]) if name in ours.shapes else 'missing'} in the model"
        for name in sorted({*theirs, *ours.shapes})
        if name not in theirs or name not in ours.shapes or list(ours.shapes[name]) != theirs[name]["shape"]
    ]
    if wrong:
        raise DataError(
            f"{checkpoint.path} is of another model: {len(wrong)} tensors differ.\n  "
            + "\n  ".join(wrong[:8])
        )
    return {f"{slot}/{name}": sums for name, t in theirs.items() for slot, sums in t["sums"].items()}
