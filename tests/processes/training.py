"""`fovea train` as processes that a test watches, strikes or stops."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


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
        for p in family(process.pid):
            p.kill()
        process.communicate()


def family(pid: int) -> list[psutil.Process]:
    try:
        return [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
    except psutil.NoSuchProcess:
        return []
