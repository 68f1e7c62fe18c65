"""`fovea watch --submit`: what waits to be evaluated becomes a Slurm job array, a task for each checkpoint.

A list says which: RUN/jobs/watch-SUITE-000001.json, whose name the array has. So the lists and the queue tell
what is submitted already, whoever submitted it.
"""

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.errors import ConfigError, PreflightError
from data_pipeline.manifest import sha256_file, write_json
from trainer.chain import SCRIPTS
from trainer.engine.pins import pin_for_job, pinning
from trainer.scheduler import Queue, mark_of, submitted
from trainer.signals import abandoning
from trainer.watch import COMPLETE, TRIES, Due, Say, Watch, evaluate, only_one

MOST = 1000
"""Tasks of an array. Slurm's own limit, where nobody raised it, is 1001."""


def watch_by_jobs(watched: Watch, *, once: bool, poll_s: float, say: Say) -> list[Due]:
    """Submit what is due until nothing waits or runs and nothing is to come; with `once` what is due now.
    Returns the checkpoints that were given up.

    Raises PreflightError where another process watches the same run with the same suite.
    """
    told: set[Due] = set()
    with only_one(watched), abandoning(f"watching {watched.run_dir}"), pinning() as pins:
        while True:
            at_work, lost = _listed(watched, Queue())
            missing = [d for d in watched.checkpoints() if d not in at_work and not watched.is_done(d)]
            given_up = [d for d in missing if watched.is_given_up(d) or lost.count(d) >= TRIES]
            due = [d for d in missing if d not in given_up]
            kept = watched.next_of(sorted([*at_work, *due], key=lambda d: d.step))
            pins.hold(d.checkpoint for d in due if d.checkpoint in kept)
            new = _submit(watched, due[:MOST])
            for d, task in (at_work | new).items():
                if d not in told or d in new:
                    say(f"{_name(d):<30}job {task} {'submitted' if d in new else 'is there'}")
                if d.checkpoint in kept:
                    pin_for_job(d.checkpoint, task)
            told |= at_work.keys() | new.keys()
            if once or (not at_work and not due and watched.is_over()):
                return given_up
            time.sleep(poll_s)


def run_task(watched: Watch, listed: Path, index: str | None, say: Say) -> int:
    """Evaluate the checkpoint that a list has at `index`. Returns the exit code of its evaluation.

    Raises ConfigError where it has none there.
    """
    on_list = _read(watched, listed)
    if index is None or not index.isdigit() or int(index) >= len(on_list):
        raise ConfigError(
            f"SLURM_ARRAY_TASK_ID is {index}, and {listed} has indices from 0 to {len(on_list) - 1}.\n"
            "  --task is for the array that `fovea watch --submit` submits."
        )
    due = on_list[int(index)]
    with abandoning(f"evaluating {_name(due)}"), pinning() as pins:
        pins.hold([due.checkpoint])
        if watched.is_done(due):
            say(f"{_name(due)} is evaluated already")
        elif not _is_there(due):
            say(f"{_name(due)} was deleted before it was evaluated: raise --pin, or keep_checkpoints")
        elif code := evaluate(watched, due, say):
            return code if code > 0 else 128 - code
    return 0


def _submit(watched: Watch, due: Sequence[Due]) -> dict[Due, str]:
    """One array of all of them; the task of each."""
    if not due:
        return {}
    number = max((int(p.stem.rpartition("-")[2]) for p in _lists(watched)), default=0) + 1
    listed = watched.run_dir.resolve() / "jobs" / f"watch-{watched.name}-{number:06d}.json"
    page = [{"checkpoint": str(d.checkpoint.relative_to(watched.run_dir)), "digest": d.digest} for d in due]
    write_json(listed, page)
    words = ["sbatch", "--parsable", f"--job-name={_job_name(watched, listed)}", f"--array=0-{len(due) - 1}"]
    words += [f"--output={listed.parent / '%x-%a.out'}", str(SCRIPTS / "eval.sh")]
    given = {"RUN": str(watched.run_dir.resolve()), "SUITE": watched.name, "WATCH_LIST": str(listed)}
    given |= {"FOVEA_SLURM": str(SCRIPTS)}
    given |= {"RANKS_PER_NODE": str(watched.nproc)} if watched.nproc > 1 else {}
    try:
        job = submitted(words, {**os.environ, **given}, "an array of evaluations")
    except PreflightError:
        listed.unlink()
        raise
    return {d: f"{job}_{index}" for index, d in enumerate(due)}


def _listed(watched: Watch, queue: Queue) -> tuple[dict[Due, str], list[Due]]:
    """What tasks that wait or run are for, each with its task; and what others were for, once for each."""
    at_work: dict[Due, str] = {}
    over: list[Due] = []
    for listed in _lists(watched):
        for index, due in enumerate(_read(watched, listed)):
            if task := queue.tasks.get((_job_name(watched, listed), index)):
                at_work[due] = task
            else:
                over.append(due)
    return at_work, over


def _lists(watched: Watch) -> Iterator[Path]:
    form = re.compile(rf"watch-{re.escape(watched.name)}-\d{{6}}\.json")
    return (p for p in sorted(watched.run_dir.glob("jobs/watch-*.json")) if form.fullmatch(p.name))


def _read(watched: Watch, listed: Path) -> list[Due]:
    found = []
    for entry in json.loads(listed.read_text(encoding="utf-8")):
        checkpoint = watched.run_dir / entry["checkpoint"]
        found.append(Due(checkpoint, int(checkpoint.name.removeprefix("step_")), entry["digest"]))
    return found


def _is_there(due: Due) -> bool:
    """Whether it is that very checkpoint still."""
    marker = due.checkpoint / COMPLETE
    return marker.is_file() and sha256_file(marker) == due.digest


def _job_name(watched: Watch, listed: Path) -> str:
    return f"fovea-{listed.stem}-{mark_of(watched.run_dir)}"


def _name(due: Due) -> str:
    return f"{due.stage}/{due.checkpoint.name}"
