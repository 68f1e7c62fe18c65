"""`fovea watch`: every new checkpoint of a run is evaluated once, by a process of its own.

What is done stands in the results, under the checkpoint's digest: a watcher may die and another go on;
the training may die as well. What failed stands in STAGE/eval/step_N/SUITE.failed.json.
"""

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import ConfigError, DataError, PreflightError
from data_pipeline.manifest import sha256_file, write_json
from trainer.config import Recipe, load_recipe
from trainer.engine.pins import pinning
from trainer.evaluation.config import Suite
from trainer.evaluation.suite_results import json_of, note_regressions, stands
from trainer.signals import abandoning, run_process, stopped_by

COMPLETE = "COMPLETE.json"

TRIES = 3
"""Of an evaluation that fails by what may pass: a killed process, a lost rank, another that writes there."""

LASTING = frozenset((ConfigError.exit_code, DataError.exit_code))
"""Exit codes that a repetition would only give again."""

Say = Callable[[str], object]


@dataclass(frozen=True)
class Due:
    """A checkpoint, and where its results go."""

    checkpoint: Path
    step: int
    digest: str

    @property
    def stage(self) -> str:
        return self.checkpoint.parents[1].name

    @property
    def results(self) -> Path:
        return self.checkpoint.parents[1] / "eval" / self.checkpoint.name


@dataclass(frozen=True)
class Watch:
    """What is run on each checkpoint of `run_dir`. `suite` is None for the held-out evaluation."""

    run_dir: Path
    recipe: Recipe
    name: str
    suite: Suite | None
    nproc: int = 1
    pin: int = 2
    """So many checkpoints of a stage, at most, are kept until they are evaluated."""

    @classmethod
    def open(cls, run_dir: Path, name: str, nproc: int = 1, pin: int = 2) -> "Watch":
        """Raises ConfigError where `run_dir` is no run, or its recipe has no suite of that name."""
        page = run_dir / "recipe.resolved.yaml"
        if not page.is_file():
            raise ConfigError(
                f"{run_dir} is no run directory: it has no recipe.resolved.yaml.\n  `fovea train` writes it."
            )
        recipe = load_recipe(page)
        return cls(run_dir, recipe, name, recipe.suite(name), nproc, pin)

    def due(self) -> list[Due]:
        """Checkpoints without results of this suite, in the order of training."""
        return [d for d in self.checkpoints() if not self.is_done(d) and not self.is_given_up(d)]

    def next_of(self, due: list[Due]) -> list[Path]:
        """Those of `due` that must not be deleted: of each stage the first ones."""
        by_stage: dict[str, list[Path]] = {}
        for d in due:
            by_stage.setdefault(d.stage, []).append(d.checkpoint)
        return [path for paths in by_stage.values() for path in paths[: self.pin]]

    def given_up(self) -> list[Due]:
        return [d for d in self.checkpoints() if not self.is_done(d) and self.is_given_up(d)]

    def checkpoints(self) -> Iterator[Due]:
        for stage in self.recipe.stages:
            yield from _committed(self.run_dir / stage.name)

    def is_done(self, due: Due) -> bool:
        return stands(due.results, self.suite, due.digest)

    def is_given_up(self, due: Due) -> bool:
        failed = self._failed(due)
        return failed.get("digest") == due.digest and (failed["tries"] >= TRIES or failed["code"] in LASTING)

    def is_over(self) -> bool:
        """Whether no checkpoint is to come: each stage of the recipe has its last one."""
        there = {(c.stage, c.step) for c in self.checkpoints()}
        return all((stage.name, stage.steps) in there for stage in self.recipe.stages)

    def evaluate(self, due: Due) -> int:
        """Run the suite on one checkpoint, in a process of its own. Its output goes to SUITE.log."""
        due.results.mkdir(parents=True, exist_ok=True)
        words = ["eval", str(due.checkpoint), "--suite", self.name, "--nproc", str(self.nproc)]
        log = due.results / f"{self.name}.log"
        with log.open("wb") as f:
            code, asked = run_process([sys.executable, "-m", "trainer.cli", *words], output=f)
        if asked:
            raise stopped_by(asked[0], f"watching {self.run_dir} ended")
        failed = due.results / f"{self.name}.failed.json"
        if code == 0:
            failed.unlink(missing_ok=True)
        elif due.checkpoint.exists():
            before = self._failed(due)
            tries = before["tries"] + 1 if before.get("digest") == due.digest else 1
            write_json(failed, {"digest": due.digest, "tries": tries, "code": code, "said": said(log)[-20:]})
        return code

    def _failed(self, due: Due) -> dict[str, Any]:
        return json_of(due.results / f"{self.name}.failed.json")


def watch(watched: Watch, *, once: bool, poll_s: float, say: Say) -> list[Due]:
    """Evaluate until nothing is due and nothing is to come. Returns the checkpoints that were given up.

    Raises PreflightError where another process watches the same run with the same suite.
    """
    tried: set[Due] = set()
    with only_one(watched), abandoning(f"watching {watched.run_dir}"), pinning() as pins:
        while True:
            due = watched.due()
            fresh, again = ([d for d in due if (d in tried) == was] for was in (False, True))
            pins.hold(watched.next_of([*fresh, *again]))
            if fresh:
                tried.add(fresh[0])
                evaluate(watched, fresh[0], say)
            elif not due and (once or watched.is_over()):
                return watched.given_up()
            else:
                time.sleep(poll_s)
                tried.clear()


def evaluate(watched: Watch, due: Due, say: Say) -> int:
    """Evaluate one checkpoint, and say what came of it. Returns its exit code."""
    code = watched.evaluate(due)
    name, log = f"{due.stage}/{due.results.name}", said(due.results / f"{watched.name}.log")
    last = log[-1] if log else "it said nothing"
    if code == 0:
        say("\n".join([f"{name}:", *log]))
        for r in note_regressions(due.results, watched.name, watched.suite):
            low, high = r["interval_95"]
            change = f"{r['value']} {r['difference']:+.4g} [{low:+.4g}, {high:+.4g}]"
            say(f"  worse: {r['task']} {change} against {r['from']}")
        # Those of an array end in any order: a later one may have missed this one when it looked.
        for later in watched.checkpoints():
            if later.stage == due.stage and later.step > due.step and watched.is_done(later):
                note_regressions(later.results, watched.name, watched.suite)
    elif not due.checkpoint.exists():
        say(f"{name} was deleted before it was evaluated: raise --pin, or the stage's keep_checkpoints")
    elif watched.is_given_up(due):
        say(f"{name} is given up, code {code}: {last}")
    else:
        say(f"{name} failed with code {code} and is tried again: {last}")
    return code


def _committed(stage_dir: Path) -> list[Due]:
    """The checkpoints that were renamed into place, in order; the evaluation verifies them."""
    found = []
    for path in stage_dir.glob("checkpoints/step_*"):
        number = path.name.removeprefix("step_")
        with contextlib.suppress(FileNotFoundError):  # deleted by its training just now
            if number.isdigit():
                found.append(Due(path, int(number), sha256_file(path / COMPLETE)))
    return sorted(found, key=lambda d: d.step)


@contextmanager
def only_one(watched: Watch) -> Iterator[None]:
    """Raises PreflightError where another process watches this run with this suite."""
    file = watched.run_dir / f".watch.{watched.name}.lock"
    held = os.open(file, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PreflightError(
                f"another process watches {watched.run_dir} with the suite '{watched.name}'; wait for it."
            ) from None
        yield
    finally:
        os.close(held)


def said(log: Path) -> list[str]:
    """The lines of a log that are not blank."""
    return [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
