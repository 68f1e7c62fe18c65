"""The commands of Slurm: which jobs wait or run, and a further one. Imports no torch."""

import getpass
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from data_pipeline.errors import PreflightError, TransientError

ASKED_S = 10.0
"""So long a controller may take to answer somebody who has other work to do."""


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
