"""Run with die_at.so preloaded: one verb on a run directory, dying at each change of a file, and repeated.

    LD_PRELOAD=die_at.so python dying_runs.py die_at.so {train|export} RUN WORK STRIDE

RUN is a copy that is left as it is; its stage `align` is trained. `train`: the stage `instruct` from its
weights, three steps with a checkpoint after each. `export`: of `align`, over a directory that was exported
before. Of writes to a file the first, a middle and the last are tried. Prints {"changes", "points", "wrong":
[[point, change, what is wrong], ...]}.
"""

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "0"}

from safetensors import SafetensorError

import trainer.loop  # noqa: F401  what all children share is loaded once
from data_pipeline.errors import DataError, FoveaError
from trainer.cli import main as fovea
from trainer.engine import checkpoint
from trainer.export.hf import load_exported

DIED, STEPS = 137, 3
EXACT = ("step", "loss", "lr", "grad_norm", "tokens", "samples", "ledger", "window", "row")
lib = ctypes.CDLL(sys.argv[1])
lib.changes.restype = ctypes.c_char_p


class Training:
    """A warm start, three saves and a retention."""

    def __init__(self, run: Path) -> None:
        self._run = run

    def begin(self, folder: Path) -> None:
        shutil.copytree(self._run, folder)

    def act(self, folder: Path) -> int:
        stage = [f"stages.instruct.{key}" for key in (f"steps={STEPS}", "checkpoint_every=1")]
        # By the same thread as always, and waited for: changes come in one order.
        words = [
            "--stage",
            "instruct",
            "--run",
            str(folder),
            *stage,
            "stages.instruct.checkpoint_async=false",
            "data.workers=0",
        ]
        return fovea(["train", str(folder / "recipe.yaml"), *words])

    def faults(self, folder: Path, done: bool) -> Iterator[str]:
        """What is wrong with a stage that died, or is `done`."""
        newest, rejected = checkpoint.newest(folder / "instruct")
        if rejected:
            yield f"bears the name of a checkpoint and is none: {rejected}"
        if done and (newest is None or newest.step != STEPS):
            yield f"the newest checkpoint is {newest and newest.step}"
        names = [p.name for p in (folder / "instruct" / "checkpoints").glob("*")]
        steps = sorted(name for name in names if name.startswith("step"))
        if done and steps != ["step_000002", "step_000003"]:
            yield f"there are {names}"
        if newest is not None and newest.step > 1:
            before = checkpoint.directory_of(folder / "instruct", newest.step - 1)
            try:
                checkpoint.verify(before)
            except DataError as e:
                yield f"the last but one does not verify: {e}"

    def outcome(self, folder: Path) -> Any:
        """Losses and ledger of all steps, and every tensor of the last checkpoint by its sums."""
        lines = (folder / "instruct" / "metrics.jsonl").read_text().splitlines()
        series = [{key: line[key] for key in EXACT} for line in map(json.loads, lines)]
        last = checkpoint.verify(checkpoint.directory_of(folder / "instruct", STEPS))
        return series, [part.tensors for part in last.parts]


class Exporting:
    """A directory that takes the place of an earlier one."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._earlier = run.parent / "earlier"
        before = sorted((run / "align" / "checkpoints").glob("step_*"))[0]
        child = os.fork()
        if not child:
            os.dup2(2, 1)
            os._exit(fovea(["export", str(before), str(self._earlier)]))
        os.waitpid(child, 0)
        self._known = [self._weights(self._earlier)]

    def begin(self, folder: Path) -> None:
        shutil.copytree(self._earlier, folder / "exported")

    def act(self, folder: Path) -> int:
        return fovea(["export", str(self._run / "align"), str(folder / "exported")])

    def faults(self, folder: Path, done: bool) -> Iterator[str]:
        """An export is the old one, the new one, or not there."""
        left = sorted(p.name for p in folder.iterdir())  # hidden ones too
        if done and left != ["exported"]:
            yield f"there is {left}"
        if not (folder / "exported").exists():
            return
        try:
            load_exported(folder / "exported")
            weights = self._weights(folder / "exported")
        except (FoveaError, OSError, SafetensorError) as e:
            yield f"a directory of that name which is no export: {e}"
            return
        self._known.append(weights)  # at first, by the unbroken one
        if weights not in self._known[:2]:
            yield "neither the old export nor the new one"

    def outcome(self, folder: Path) -> Any:
        return self._weights(folder / "exported")

    def _weights(self, directory: Path) -> bytes:
        return (directory / "model.safetensors").read_bytes()


def main(_: str, name: str, run: str, work: str, stride: str) -> None:
    deed = Training(Path(run)) if name == "train" else Exporting(Path(run))
    folder, noted = Path(work) / "0", Path(work) / "changes"
    deed.begin(folder)
    if code := ran(deed, folder, 0, noted):
        raise SystemExit(f"the unbroken {name} failed with code {code}")
    if faults := list(deed.faults(folder, done=True)):
        raise SystemExit(f"the unbroken {name} is not sound: {faults}")
    unbroken = deed.outcome(folder)
    changes = noted.read_text().splitlines()
    points = list(chosen(changes))[:: int(stride)]
    wrong = [
        [point, changes[point - 1], fault]
        for point in points
        for fault in faults_after(deed, folder, point, unbroken)
    ]
    sys.stdout.write(json.dumps({"changes": len(changes), "points": len(points), "wrong": wrong}) + "\n")


def ran(deed: Training | Exporting, folder: Path, fatal: int, noted: Path | None = None) -> int:
    """The exit code of the deed in a process of its own, `DIED` where it died at that change."""
    sys.stdout.flush()
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.dup2(2, 1)  # what verbs say is not the result
    leave = os._exit

    def noting(code: int) -> None:
        if noted is not None:
            noted.write_bytes(lib.changes())
        leave(code)

    os._exit = noting  # by which a rank ends when it is done
    lib.arm(str(folder).encode(), ctypes.c_long(fatal))
    code = 1
    try:
        code = deed.act(folder)
    finally:
        os._exit(code)


def chosen(changes: list[str]) -> list[int]:
    """The points to die at, from 1: all but writes, of which three of each file."""
    points, writes = [], {}
    for point, change in enumerate(changes, 1):
        if change.startswith("write "):
            writes.setdefault(change, []).append(point)
        else:
            points.append(point)
    return sorted({*points, *(a[i] for a in writes.values() for i in (0, len(a) // 2, -1))})


def faults_after(deed: Training | Exporting, folder: Path, point: int, unbroken: Any) -> Iterator[str]:
    """What is wrong once the deed has died there, and once it was repeated."""
    shutil.rmtree(folder)
    deed.begin(folder)
    if (code := ran(deed, folder, point)) != DIED:
        yield f"did not die, exit code {code}"
    yield from (f"dead: {fault}" for fault in deed.faults(folder, done=False))
    if code := ran(deed, folder, 0):
        yield f"the repeat ended with exit code {code}"
        return
    yield from (f"repeated: {fault}" for fault in deed.faults(folder, done=True))
    if deed.outcome(folder) != unbroken:
        yield "repeated: another outcome than the unbroken one's"


main(*sys.argv[1:])
