"""Start the ranks of one node and stand by them. No torch here: the parent only waits.

Under Slurm or torchrun the environment already names the rank, and nothing is started.
"""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.errors import PreflightError, TransientError

GRACE_S = 30.0
"""Seconds that the other ranks get to end by themselves once one has ended badly."""


def is_rank() -> bool:
    """True in a process that a launcher has already given its rank."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(argv: list[str], nproc: int) -> int:
    """Run `fovea argv...` as `nproc` ranks on this machine; the exit code of the rank that failed first.

    One rank's death ends the others. Raises TransientError where a rank was killed by a signal.
    """
    port = _free_port()
    threads = str(max(1, (os.cpu_count() or 1) // nproc))
    ranks = []
    for rank in range(nproc):
        env = {
            "OMP_NUM_THREADS": threads,
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(nproc),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        ranks.append(subprocess.Popen([sys.executable, "-m", "trainer.cli", *argv], env=env))
    with _forward_signals(ranks):
        return _wait(ranks)


@contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Refuse a second process on the same directory. The kernel frees the lock when its holder dies."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise PreflightError(
                f"{directory} is in use by {lock.read().strip() or 'another process'}.\n"
                "  Wait for it, stop it, or choose another --run directory."
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    while True:
        codes = [r.poll() for r in ranks]
        failed = [(i, c) for i, c in enumerate(codes) if c not in (None, 0)]
        if failed:
            break
        if all(c == 0 for c in codes):
            return 0
        time.sleep(0.05)
    # Ranks that agreed on an error end together, with their own code: let them finish saying it.
    deadline = time.monotonic() + (GRACE_S if failed[0][1] > 0 else 2.0)
    while any(r.poll() is None for r in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
    for r in ranks:
        if r.poll() is None:
            r.kill()
        r.wait()
    rank, code = failed[0]
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        raise TransientError(
            f"rank {rank} (process {ranks[rank].pid}) was ended by {name}; the other ranks were stopped.\n"
            "  Repeat the same command: training resumes from the newest verified checkpoint."
        )
    return code or 1


@contextmanager
def _forward_signals(ranks: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Pass SIGTERM and SIGINT on, so that no rank outlives the launcher."""

    def forward(number: int, _frame: object) -> None:
        for r in ranks:
            if r.poll() is None:
                r.send_signal(number)

    before = {s: signal.signal(s, forward) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
