"""How worker processes start: from a server that has loaded what they need, and nothing of this process."""

import contextlib
import multiprocessing
import multiprocessing.forkserver
import signal
import time
from collections.abc import Iterable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess

import psutil

REQUESTS = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
"""What a terminal or a batch system sends to all processes of a job. A run that was asked to stop still needs
its workers; they end with it."""


def forkserver() -> ForkServerContext:
    """Not forked from here: this process may hold threads (reading, collectives) that a copy waits for.

    The server and what it starts leave `REQUESTS` to the process that asked for them.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_pipeline.stream.making"])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


class WorkerMemory:
    """What worker processes held when they were last looked at, for the day one of them is killed."""

    def __init__(self, every_s: float = 1.0) -> None:
        self._every_s, self._looked = every_s, -every_s
        self._held: dict[int, tuple[BaseProcess, int]] = {}

    def look(self, workers: Iterable[BaseProcess]) -> None:
        """At most every so often, but at once at a worker that was never looked at."""
        there = {w.pid: w for w in workers if w.pid is not None and w.is_alive()}
        now = time.monotonic()
        if now - self._looked < self._every_s and there.keys() <= self._held.keys():
            return
        self._looked = now
        for pid, worker in there.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                self._held[pid] = worker, psutil.Process(pid).memory_info().rss

    def __str__(self) -> str:
        gone = [(pid, rss) for pid, (worker, rss) in self._held.items() if not worker.is_alive()]
        held = ", ".join(f"process {pid} held {rss / 2**30:.2f} GiB" for pid, rss in gone)
        return f"{held} when last looked at" if gone else "What it held is not known"


def end_on_request() -> None:
    """In a worker whose parent ends it by SIGTERM, as process pools do."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
