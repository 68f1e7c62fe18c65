"""Start the ranks of one node and stand by them. No torch here: the parent only waits.

Under torchrun the environment already names the rank, and nothing is started.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from data_pipeline.errors import FoveaError, TransientError, shown
from trainer.signals import forwarding, stopped_by

GRACE_S = 30.0
"""Seconds that the other ranks get to end by themselves once one has failed."""

KILLED_GRACE_S = 3.0
"""The same once one was killed: nothing is left to agree on."""

LOST_GRACE_S = 10.0
"""The same once one gave up on another: whoever still can has done so by then."""

STOPPED_GRACE_S = 10.0
"""The same once one has stopped on request: what there was to save is saved."""

ERROR_FILE = "FOVEA_ERROR_FILE"
"""Environment variable: where a rank leaves its error for the launcher."""

LAUNCHER = "FOVEA_LAUNCHER"
"""Environment variable: the launcher's process number."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def is_rank() -> bool:
    """True in a process that a launcher has already given its rank."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


Death = Callable[[int, str, Sequence[int]], str]
"""What is known of a rank that was killed: its number, the signal's name, and the processes of all ranks."""


def launch(argv: list[str], nproc: int, death: Death = lambda rank, how, pids: "") -> None:
    """Run `fovea argv...` as `nproc` ranks on this machine. One rank's failure ends the others.

    Raises the error of the rank that failed by itself; TransientError where a rank was killed. Signals that
    ask to stop go to all ranks, once; where the ranks could not answer, the error is that of the signal.
    """
    threads = str(max(1, (os.cpu_count() or 1) // nproc))
    with tempfile.TemporaryDirectory() as said, meeting_port() as port:
        ranks: list[subprocess.Popen[bytes]] = []
        with forwarding(ranks) as asked:
            for rank in range(nproc):
                env = {
                    "OMP_NUM_THREADS": threads,
                    **os.environ,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(nproc),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    ERROR_FILE: str(Path(said) / str(rank)),
                    LAUNCHER: str(os.getpid()),
                }
                ranks.append(subprocess.Popen([sys.executable, "-m", "trainer.cli", *argv], env=env))
            for r in ranks if asked else ():
                r.send_signal(asked[0])  # those that were not there yet when it came
            codes, known = _wait(ranks, asked, death)
        if any(codes):
            files = [Path(said) / str(rank) for rank in range(nproc)]
            errors = [_read_error(file) for file in files]
            # Whoever spoke first was broken by none of the others.
            spoke = min((f for f in files if f.exists()), key=lambda f: f.stat().st_mtime_ns, default=None)
            if asked and not any(errors) and all(c in (0, -asked[0]) for c in codes):
                raise stopped_by(asked[0], "stopped before training began")
            raise _root_cause(codes, errors, None if spoke is None else int(spoke.name), known)


def end_with_launcher() -> None:
    """Ask the kernel to kill this rank when its launcher dies: an orphan would go on training beside the
    run that replaces it."""
    if LAUNCHER in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != int(os.environ[LAUNCHER]):  # it died before it was asked for
            os.kill(os.getpid(), signal.SIGKILL)


def report_error(error: FoveaError) -> None:
    """Say the error: to the launcher where one stands by, which says it once for all ranks, else here."""
    if file := os.environ.get(ERROR_FILE):
        Path(file).write_text(str(error), encoding="utf-8")
    else:
        sys.stderr.write(f"fovea: {shown(error)}\n")


def _wait(
    ranks: list[subprocess.Popen[bytes]], asked: list[int], death: Death
) -> tuple[list[int], dict[int, str]]:
    """Exit codes once all have ended, 0 for ranks that had to be stopped because another failed; and what is
    known of the rank that was killed first."""
    while all(r.poll() in (None, 0) for r in ranks):
        if all(r.poll() == 0 for r in ranks):
            return [0] * len(ranks), {}
        time.sleep(0.05)
    codes = [r.poll() or 0 for r in ranks]
    known = {}
    if killed := [i for i, c in enumerate(codes) if c < 0 and -c not in asked]:
        how = signal.Signals(-codes[killed[0]]).name
        with contextlib.suppress(OSError):  # stacks are left on a disk, which may be full
            known[killed[0]] = death(killed[0], how, [r.pid for r in ranks])
    # Ranks that agreed on an error end together, each with its own code: let them finish.
    grace_s = (
        KILLED_GRACE_S
        if any(c < 0 for c in codes)
        else STOPPED_GRACE_S
        if asked
        else LOST_GRACE_S
        if TransientError.exit_code in codes
        else GRACE_S
    )
    deadline = time.monotonic() + grace_s
    while any(r.poll() is None and not _is_stopped(r) for r in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
    codes = [r.poll() or 0 for r in ranks]
    for r in ranks:
        if r.poll() is None:
            _kill_family(r)
        r.wait()
    return codes, known


def _is_stopped(rank: subprocess.Popen[bytes]) -> bool:
    """Whether it cannot end by itself, nor hear that it should."""
    return psutil.Process(rank.pid).status() == psutil.STATUS_STOPPED


def _kill_family(rank: subprocess.Popen[bytes]) -> None:
    """A rank, and what it started: processes that prepare data, which may be stopped like it."""
    children = psutil.Process(rank.pid).children(recursive=True)
    rank.kill()
    kill_all(children)


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Any of them may have ended meanwhile, with its parent for one."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _root_cause(
    codes: list[int], said: list[str | None], spoke: int | None = None, known: Mapping[int, str] | None = None
) -> FoveaError:
    """The failure that the others followed from: an error of a rank's own, then a kill, then a lost peer.

    `spoke`: the rank that spoke first. `known`: of ranks that were killed."""
    own = [i for i, c in enumerate(codes) if c > 0 and c != TransientError.exit_code]
    own.sort(key=lambda i: said[i] is None)  # one that broke because its peer stopped says nothing itself
    known = known or {}
    killed = [i for i, c in enumerate(codes) if c < 0]
    killed.sort(key=lambda i: i not in known)
    if own:
        error = FoveaError(said[own[0]] or f"rank {own[0]} failed; its own message stands above.")
        error.exit_code = codes[own[0]]
        return error
    if killed:
        name = signal.Signals(-codes[killed[0]]).name
        return TransientError(
            f"rank {killed[0]} was ended by {name}{known.get(killed[0], '')}; the other ranks were stopped.\n"
            "  Repeat the same command: training resumes from the newest verified checkpoint."
        )
    first = said[spoke] if spoke is not None else next((m for m in said if m), None)
    first = first or "a rank ended too early"
    return TransientError(first if "\n" in first else f"{first}\n  Repeat the command.")


def _read_error(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.exists() else None


@contextlib.contextmanager
def meeting_port() -> Iterator[int]:
    """A port of this machine for rank 0 to listen on. No other process is given it by chance meanwhile: it is
    bound here without listening, beside which one that names it (SO_REUSEADDR, as torch's store) may listen.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])
