"""The commands of Slurm: which jobs wait or run, and a further one. Imports no torch."""

import getpass
import hashlib
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipeline.errors import PreflightError, TransientError

ASKED_S = 10.0
"""So long a controller may take to answer somebody who has other work to do."""

GLANCE_S = 3.0
"""And somebody who looks at a screen."""


@dataclass(frozen=True, kw_only=True)
class RunJob:
    """A job about a run: its name without what marks the run, and Slurm's words for how it stands.

    `reason`: why it waits; of one that has ended its exit code and signal, as `3:0`.
    """

    number: str
    name: str
    state: str
    reason: str
    elapsed: str
    nodes: str


class Queue:
    """The user's jobs that wait or run: name -> number. `tasks`: name and index in an array -> `4712_3`."""

    def __init__(self, or_else: str = "") -> None:
        """Raises PreflightError where Slurm's commands are missing, with `or_else` behind the advice."""
        if missing := [c for c in ("sbatch", "squeue") if shutil.which(c) is None]:
            raise PreflightError(
                f"submitting jobs needs {' and '.join(missing)}, not on this machine's PATH.\n"
                f"  Run it on a login node{or_else}."
            )
        asked = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%A %F %K %j"]
        found = subprocess.run(asked, capture_output=True, text=True, check=False)
        if found.returncode:
            raise TransientError(f"squeue does not answer: {found.stderr.strip()}\n  Repeat the command.")
        jobs = [line.strip().split(maxsplit=3) for line in found.stdout.splitlines()]
        self.by_name = {name: number for number, *_, name in jobs}
        self.tasks = {(name, int(k)): f"{array}_{k}" for _, array, k, name in jobs if k.isdigit()}

    def has(self, number: str) -> bool:
        return number in self.by_name.values()


def mark_of(run: Path) -> str:
    """What the names of all jobs about this run directory end in."""
    return hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:8]


def submitted(words: Sequence[str], env: Mapping[str, str], what: str) -> str:
    """The number of the new job of `sbatch --parsable ...`. Raises PreflightError with what it says where it
    refuses."""
    done = subprocess.run(words, env=dict(env), capture_output=True, text=True, check=False)
    if done.returncode:
        raise PreflightError(
            f"sbatch refused {what}: {done.stderr.strip()}\n"
            "  Mend slurm/env.sh, and repeat the command: what is submitted already stays."
        )
    return done.stdout.strip().partition(";")[0]


def is_known(job: str) -> bool | None:
    """Whether that job, or the task `4712_3` of an array, waits or runs; None where nobody can say."""
    if shutil.which("squeue") is None:
        return None
    asked = ["squeue", "--noheader", f"--jobs={job}", "--format=%A"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=ASKED_S)
    except subprocess.TimeoutExpired:
        return None
    if found.returncode == 0:
        return bool(found.stdout.strip())
    return False if "Invalid job id" in found.stderr else None


def jobs_of_run(run: Path, known: Iterable[str]) -> tuple[RunJob, ...] | None:
    """Those that wait or run, by the mark of their names or as one of the numbers `known`; and how others of
    `known` ended, where Slurm keeps accounts. None where there is no Slurm, or it does not answer."""
    mark, numbers = f"-{mark_of(run)}", set(known)
    waiting = _rows(["squeue", "--noheader", "--format=%i|%T|%r|%M|%N|%j"])
    if waiting is None:
        return None
    found = [job for job in waiting if job.name.endswith(mark) or job.number in numbers]
    if ended := numbers - {job.number for job in found}:
        columns = "--format=JobID,State,ExitCode,Elapsed,NodeList,JobName"
        asked = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(sorted(ended))}"]
        found = [*(_rows([*asked, columns]) or ()), *found]
    return tuple(replace(job, name=job.name.removesuffix(mark).removeprefix("fovea-")) for job in found)


def _rows(asked: Sequence[str]) -> list[RunJob] | None:
    if shutil.which(asked[0]) is None:
        return None
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=GLANCE_S)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        return None
    cells = (line.strip().split("|", 5) for line in done.stdout.splitlines())
    keys = ("number", "state", "reason", "elapsed", "nodes", "name")
    return [RunJob(**dict(zip(keys, row, strict=True))) for row in cells if len(row) == len(keys)]
