"""datatrove's local executor, with completion judged by our own records.

datatrove marks a finished rank by an empty file: it does not notice a changed pipeline, another number of
tasks, or a shard that is gone. Here a task is done if its record exists, is of this build, and its shards
are there in their recorded size.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from pathlib import Path

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from data_pipeline.errors import DataError, TransientError
from data_pipeline.manifest import read_task_record, task_record_path


def is_task_done(directory: Path, task: int, tasks: int, fingerprint: str) -> bool:
    path = task_record_path(directory, task)
    if not path.exists():
        return False
    try:
        record = read_task_record(path)
    except DataError:
        return False  # not a record: the task is done again and writes a sound one
    if (record.task, record.tasks, record.fingerprint) != (task, tasks, fingerprint):
        return False
    shards = ((directory / s.path, s.nbytes) for s in record.shards)
    return all(path.exists() and path.stat().st_size == nbytes for path, nbytes in shards)


class BuildExecutor(LocalPipelineExecutor):
    """Runs the tasks that are not done: in this process with one worker, else in a pool."""

    def __init__(
        self, pipeline: list[PipelineStep], *, directory: Path, fingerprint: str, tasks: int, workers: int
    ):
        super().__init__(
            pipeline, tasks=tasks, workers=workers, logging_dir=str(directory / "logs" / fingerprint)
        )
        self.directory = directory
        self.fingerprint = fingerprint

    def is_rank_completed(self, rank: int) -> bool:
        return is_task_done(self.directory, rank, self.tasks, self.fingerprint)

    def get_incomplete_ranks(
        self, ranks: list[int] | None = None, skip_completed: bool | None = None
    ) -> list[int]:
        return [r for r in (range(self.tasks) if ranks is None else ranks) if not self.is_rank_completed(r)]

    def run(self, done: Callable[[int], None] = lambda task: None) -> None:
        """Run what is left; `done` hears of each finished task."""
        ranks = self.get_incomplete_ranks()
        if self.workers == 1 or len(ranks) < 2:
            for rank in ranks:
                done(self._run_rank(rank))
            return
        # Not a Pool of multiprocessing: that waits for ever for a worker which the kernel has killed.
        context = multiprocessing.get_context(self.start_method)
        try:
            with ProcessPoolExecutor(
                min(self.workers, len(ranks)), mp_context=context, initializer=_end_with_the_build
            ) as pool:
                for future in as_completed([pool.submit(self._run_rank, rank) for rank in ranks]):
                    done(future.result())
        except BrokenProcessPool:
            raise TransientError(
                "a worker of the build died from outside (killed, or out of memory). What is done is kept:\n"
                "  repeat the same command, with fewer --workers if memory was short"
            ) from None

    def _run_rank(self, rank: int) -> int:
        # Local rank 1 of datatrove logs to its file only; rank 0 would also log to the terminal.
        pipeline, self.pipeline = self.pipeline, deepcopy(self.pipeline)
        try:
            self._run_for_rank(rank, local_rank=1)
        finally:
            self.pipeline = pipeline
        return rank


def _end_with_the_build() -> None:
    """A worker of a build that was killed would wait for its next task for ever: it ends instead."""

    def watch() -> None:
        if (build := multiprocessing.parent_process()) is not None:
            build.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
