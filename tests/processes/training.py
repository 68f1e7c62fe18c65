"""`fovea train` as processes that a test watches, strikes or stops."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from trainer.launch import kill_all
from waiting import wait_for


def start(*words: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """`fovea ...` in a process group of its own; all that it says comes by one pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.cli", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def train(run: Path, *words: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """The stage `align` of run/recipe.yaml on two ranks."""
    command = ("train", run / "recipe.yaml", "--stage", "align", "--run", run, "--nproc", 2, *words)
    return start(*command, env=env)


@contextmanager
def leaving_nothing(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Kills what is left of it and its ranks in the end."""
    try:
        yield process
    finally:
        kill_all(family(process.pid))
        process.communicate()


def ranks_of(launcher: int) -> dict[int, psutil.Process]:
    """The ranks that it has started by now, by number. It has other children as well, which come and go."""
    found = {}
    for child in psutil.Process(launcher).children():
        with suppress(psutil.Error):
            if rank := child.environ().get("RANK"):
                found[int(rank)] = child
    return found


def held(process: subprocess.Popen[str], number: int = 0) -> psutil.Process:
    """That rank, once a fault (stop:NUMBER@STEP) has stopped it: there it stands until it is struck."""

    def stopped() -> psutil.Process | None:
        assert process.poll() is None, process.communicate(timeout=60)[0]
        rank = ranks_of(process.pid).get(number)
        return rank if rank and rank.status() == psutil.STATUS_STOPPED else None

    return wait_for(stopped)


def family(pid: int) -> list[psutil.Process]:
    try:
        return [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
    except psutil.NoSuchProcess:
        return []


HELD = """
import os
if os.environ.get("RANK") == "1":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import time
    from pathlib import Path
    from trainer.evaluation.store import Store
    append, room, batches = Store.append, Path(__file__).parent, []

    def held(store, records):
        append(store, records)
        batches.append(records)
        if len(batches) == 2:
            (room / "answered").touch()
            while not (room / "go").exists():
                time.sleep(0.01)

    Store.append = held
"""
"""Rank 1 waits once it has answered two batches, until there is a file `go`."""


def answering_until_held(room: Path) -> dict[str, str]:
    """Variables under which rank 1 of an evaluation stands still there: `room`, which is made, has a file
    `answered` then, and one named `go` lets it go on."""
    room.mkdir()
    (room / "sitecustomize.py").write_text(HELD)
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(room), os.environ.get("PYTHONPATH"))))}
