"""Whether the file systems of a run answer at all: a dead mount holds whoever asks, for ever. And what is
said of one that refuses."""

import errno
import os
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.errors import PreflightError


def refuse_dead_mounts(paths: Iterable[Path], seconds: float = 5.0) -> None:
    """Raises PreflightError where a look at one of `paths` does not come back in time. What is not there has
    answered.

    A process of its own looks at each: one that the kernel holds is left behind, and nobody waits for it.
    """
    deadline = time.monotonic() + seconds
    looks = {
        path: subprocess.Popen(
            ["stat", "--file-system", "--", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for path in dict.fromkeys(map(Path, paths))
    }
    dead = []
    for path, look in looks.items():
        try:
            look.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            look.kill()
            dead.append(str(path))
    if dead:
        raise PreflightError(
            f"{', '.join(dead)}: the file system did not answer on {socket.gethostname()} in {seconds:g} s.\n"
            "  Its mount is dead or its server overloaded; `stat -f` hangs there as well.\n"
            "  Mend it, or keep the job off this node (sbatch --exclude)."
        )


_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def refusals_named(directory: Path) -> Iterator[None]:
    """A run that may not write, or finds no room, ends with PreflightError; `directory` is its own."""
    try:
        yield
    except OSError as e:
        if e.errno not in _REFUSALS:
            raise
        raise PreflightError(
            f"{refusal(e, directory)}\n  Checkpoints are whole. Make room or mend the directory, and the "
            "same command goes on."
        ) from None


def refusal(error: OSError, directory: Path, who: str = "") -> str:
    """What the file system said to `who`, where, and what is free there; `directory` if it does not say."""
    at = Path(error.filename or directory)
    there = next(p for p in (at, *at.parents) if p.is_dir())
    free = os.statvfs(there)
    said = f"{error.strerror} ({who}{at}). {free.f_bavail * free.f_frsize:,} bytes are free in {there}"
    inodes = f", and {free.f_favail:,} inodes" if error.errno == errno.ENOSPC and free.f_files else ""
    return f"{said}{inodes}."
