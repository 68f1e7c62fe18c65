"""Running the tasks of a pipeline, here or on Slurm, with completion judged by our own records.

datatrove marks a finished rank by an empty file: it does not notice a changed pipeline, another number of
tasks, or a shard that is gone. Here whoever starts a pipeline says when a task is done.
"""

import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from data_pipeline.errors import TransientError

# Ends when every task is done; `after` hears how many are, whenever that number changes.
After = Callable[[int], None]


@dataclass(frozen=True)
class Job:
    """A pipeline to be run for each of `tasks` ranks. `is_done` travels to the workers: it must pickle."""

    name: str
    pipeline: Sequence[PipelineStep]
    tasks: int
    logs: Path
    is_done: Callable[[int], bool]

    def left(self) -> list[int]:
        return [rank for rank in range(self.tasks) if not self.is_done(rank)]


class Executor(Protocol):
    """Runs what is left of a job. Raises TransientError where workers died; the same command resumes."""

    def run(self, job: Job, after: After = lambda done: None) -> None: ...


class Judged(PipelineExecutor):
    """A datatrove executor for which `job.is_done` alone decides what is complete."""

    job: Job

    def is_rank_completed(self, rank: int) -> bool:
        return self.job.is_done(rank)

    def mark_rank_as_completed(self, rank: int) -> None:
        """The job's last step has left its own record."""

    def get_incomplete_ranks(
        self, ranks: list[int] | None = None, skip_completed: bool | None = None
    ) -> list[int]:
        wanted = range(self.job.tasks) if ranks is None else ranks
        return [rank for rank in wanted if not self.job.is_done(rank)]


class _Local(Judged, LocalPipelineExecutor):
    pipeline: list[PipelineStep]

    def __init__(self, job: Job):
        super().__init__(list(job.pipeline), tasks=job.tasks, logging_dir=str(job.logs))
        self.job = job

    def run_rank(self, rank: int) -> int:
        pipeline = self.pipeline
        self.pipeline = deepcopy(pipeline)
        said = self.job.logs / "logs" / f"task_{rank:05d}.stderr"
        said.parent.mkdir(parents=True, exist_ok=True)
        try:
            # datatrove shows every error with its traceback, libraries warn of single pictures: neither is
            # for the screen. The error itself is raised, and said once by whoever catches it.
            with said.open("w", encoding="utf-8") as f, contextlib.redirect_stderr(f):
                self._run_for_rank(rank, local_rank=1)  # rank 0 would also show its progress
        finally:
            self.pipeline = pipeline
        return rank


@dataclass(frozen=True)
class LocalExecutor:
    """On this machine: in this process with one worker, else in a pool of `workers` processes."""

    workers: int = 1

    def run(self, job: Job, after: After = lambda done: None) -> None:
        ranks = job.left()
        done = job.tasks - len(ranks)
        executor = _Local(job)
        if self.workers == 1 or len(ranks) < 2:
            for rank in ranks:
                executor.run_rank(rank)
                after(done := done + 1)
            return
        # Not a Pool of multiprocessing: that waits for ever for a worker which the kernel has killed.
        context = multiprocessing.get_context(executor.start_method)
        # Imported once, by the server that forks the workers, not once more by each of them.
        ours = [name for name in sys.modules if name.startswith("data_pipeline.build.")]
        context.set_forkserver_preload(["__main__", *ours])
        try:
            with ProcessPoolExecutor(
                min(self.workers, len(ranks)), mp_context=context, initializer=_end_with_the_build
            ) as pool:
                for future in as_completed([pool.submit(executor.run_rank, rank) for rank in ranks]):
                    future.result()
                    after(done := done + 1)
        except BrokenProcessPool:
            raise TransientError(
                "a worker of the build died from outside (killed, or out of memory). What is done is kept:\n"
                "  repeat the same command, with fewer --workers if memory was short"
            ) from None


def _end_with_the_build() -> None:
    """A worker of a build that was killed would wait for its next task for ever: it ends instead."""

    def watch() -> None:
        if (build := multiprocessing.parent_process()) is not None:
            build.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
