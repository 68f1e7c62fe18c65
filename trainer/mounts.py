"""Whether the file systems of a run answer at all: a dead mount holds whoever asks, for ever."""

import socket
import subprocess
import time
from collections.abc import Iterable
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
