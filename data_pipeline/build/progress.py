"""How far a build is, from the records that its tasks leave: the same for tasks here and on a cluster.

On a terminal a bar that moves; elsewhere a plain line now and then.
"""

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from data_pipeline.errors import DataError
from data_pipeline.manifest import read_task_record

LINE_S = 10.0  # between plain lines, at least; the first and the last are always said
BAR_S = 0.5  # between looks at the records for the bar


class Progress:
    """A context in which `update` is told how many tasks are done.

    Counts the samples in the records of this build (`fingerprint`) under `directory`; each record is read
    once. The rate, and with it the time that is left, is that of the tasks done since the context began.
    """

    def __init__(
        self, directory: Path, fingerprint: str, console: Console, clock: Callable[[], float] = time.monotonic
    ):
        self.directory, self.fingerprint = directory, fingerprint
        self.console = console
        self.clock = clock
        self.every_s = BAR_S if console.is_terminal else LINE_S
        self.samples: dict[str, int] = {}  # by the record's file
        self.done_before: int | None = None
        self.began = self.spoke = clock()
        self.bar = Bar(
            TextColumn("tasks"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("tasks", total=None, said="")

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, done: int, total: int) -> None:
        """`done` of `total` tasks are done. To be called whenever that changes, or as often as one likes."""
        if first := self.done_before is None:
            self.done_before = done
        now = self.clock()
        if not (first or done == total or now - self.spoke >= self.every_s):
            return
        self.spoke = now
        self._read(total)
        said = self._said(done, total)
        self.bar.update(self.task, completed=done, total=total, said=said)
        if not self.console.is_terminal:
            line = f"{done} of {total} tasks done, {said}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def left_s(self, done: int, total: int) -> float | None:
        """Seconds until all tasks are done, at the rate so far; None before the first one is."""
        new = done - (self.done_before or 0)
        return (self.clock() - self.began) / new * (total - done) if new else None

    def _said(self, done: int, total: int) -> str:
        said = f"{sum(self.samples.values()):,} samples so far"
        if done == total:
            return said
        left = self.left_s(done, total)
        return f"{said}, {'time left not known yet' if left is None else f'about {_duration(left)} left'}"

    def _read(self, total: int) -> None:
        """Count the records that are new. One that cannot be read belongs to a task that is done again."""
        for path in (self.directory / "manifest").glob("*.json"):
            if path.name in self.samples:
                continue
            try:
                record = read_task_record(path)
            except DataError:
                continue
            if (record.tasks, record.fingerprint) == (total, self.fingerprint):
                self.samples[path.name] = sum(funnel.written for funnel in record.funnel.values())


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min"
        if hours
        else f"{minutes} min {seconds:02d} s"
        if minutes
        else f"{seconds} s"
    )
