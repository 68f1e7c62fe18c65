"""Requests to stop: signals, a time limit, a stop file. Any rank may see one; all act on it at one step."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from data_pipeline.errors import ConfigError, FoveaError, PreemptedError, PreflightError, TransientError
from trainer.signals import ASKING, SAME_S, stopped_by

STOP_FILE = "STOP"
"""Its name, in a stage's directory or in the run's. Whoever put it there takes it away."""

END_TIME = "SLURM_JOB_END_TIME"
"""Environment variable: when Slurm ends the job, in seconds since 1970."""

UNMEASURED_SAVE_S = 60.0
"""What a checkpoint is taken to need before one was measured; at most a tenth of the time there is."""

_LOOK_S = 1.0  # between two looks at the stop files

_TIME_LIMIT, _STOP_FILE = "time limit", "stop file"
REASONS: tuple[int | str, ...] = (*ASKING, _TIME_LIMIT, _STOP_FILE)
"""In the order in which one goes before another where ranks saw different ones."""


class Stopped(Exception):
    """All ranks agreed to stop here, between two steps."""

    def __init__(self, reason: int | str) -> None:
        super().__init__(reason)
        self.reason = reason

    def error(self, what: str) -> FoveaError:
        """What ends the process: code 143, 130 from the keyboard, 75 where it should be queued again."""
        if isinstance(self.reason, int):
            return stopped_by(self.reason, what)
        if self.reason == _TIME_LIMIT:
            return TransientError(f"{what}, near its time limit.\n  The same command goes on.")
        return PreemptedError(
            f"{what}, asked by a file {STOP_FILE}.\n  Delete it, and the same command goes on."
        )


@dataclass(kw_only=True)
class Margin:
    """How long before the limit the last step must have ended: two saves and a step, as measured so far."""

    limit_s: float
    save_s: float | None = None
    step_s: float = 0.0

    @property
    def seconds(self) -> float:
        save_s = min(UNMEASURED_SAVE_S, self.limit_s / 10) if self.save_s is None else 2 * self.save_s
        return save_s + 1.5 * self.step_s


class Requests:
    """What one rank saw. From `listen` on a signal ends it at once; from `begin` on it is noted for `votes`.

    `deadline`: in seconds of time.monotonic(). `stop_files` are looked for by the ranks that are given any.
    `abandoned`: this rank no longer waited for data, and a thread of it still does.
    """

    def __init__(self, deadline: float | None = None, stop_files: Sequence[Path] = ()) -> None:
        self._deadline, self._stop_files = deadline, tuple(stop_files)
        self._seen: set[int | str] = set()
        self._at_once = False
        self._interrupted = self._looked = 0.0
        self._last_vote: float | None = None
        self.abandoned = False
        self.margin = Margin(limit_s=float("inf") if deadline is None else deadline - time.monotonic())

    def listen(self) -> None:
        self._at_once = True
        for s in ASKING:
            signal.signal(s, self._note)

    def begin(self) -> None:
        """From here on there is something to save."""
        self._at_once = False

    def end(self) -> None:
        """From here on nothing is left to save: what asks now must not change how this process ends."""
        for s in ASKING:
            signal.signal(s, signal.SIG_IGN)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and number in self._seen and now - self._interrupted > SAME_S:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # the second Ctrl-C: now, whatever is at work
            os.kill(os.getpid(), signal.SIGINT)
        self._interrupted = now if number == signal.SIGINT else self._interrupted
        first = not self._seen
        self._seen.add(number)
        if self._at_once and first:
            raise stopped_by(number, "stopped before the first step, with nothing to save")

    def asked(self) -> bool:
        """True once this rank has seen a request."""
        now = time.monotonic()
        if self._deadline is not None and now + self.margin.seconds >= self._deadline:
            self._seen.add(_TIME_LIMIT)
        if self._stop_files and now - self._looked >= _LOOK_S:
            self._looked = now
            if any(file.exists() for file in self._stop_files):
                self._seen.add(_STOP_FILE)
        return bool(self._seen)

    def votes(self) -> list[float]:
        """1 for each of REASONS that this rank saw, else 0: to be summed over all ranks, once a step."""
        now = time.monotonic()
        if self._last_vote is not None:
            self.margin.step_s = max(self.margin.step_s, now - self._last_vote)
        self._last_vote = now
        self.asked()
        return [float(reason in self._seen) for reason in REASONS]

    def saved_in(self, seconds: float) -> None:
        """What a checkpoint took; it counts as no part of a step."""
        self.margin.save_s = max(self.margin.save_s or 0.0, seconds)
        self.resumed()

    def resumed(self) -> None:
        """Steps go on: what passed since the last vote counts as no part of one."""
        self._last_vote = None


def decide(votes: Sequence[float]) -> None:
    """The sums of `votes` (all ranks alike). Raises Stopped where any rank saw a request."""
    for reason, count in zip(REASONS, votes, strict=True):
        if count:
            raise Stopped(reason)


def deadline_of(limit: str | None, now: float, monotonic: float) -> float | None:
    """The earlier of `--time-limit` (from here on) and Slurm's end of the job, as time.monotonic() seconds.

    Raises ConfigError where the limit is neither seconds nor HH:MM:SS.
    """
    ends = [monotonic + parse_limit(limit)] if limit else []
    if (slurm := os.environ.get(END_TIME, "")).isdigit():
        ends.append(monotonic + int(slurm) - now)
    return min(ends, default=None)


def parse_limit(limit: str) -> float:
    """Seconds of `90`, `01:30` (minutes, seconds) or `00:01:30`."""
    parts = limit.split(":")
    if len(parts) > 3 or not all(p.isascii() and p.isdigit() for p in parts) or not any(map(int, parts)):
        raise ConfigError(f"--time-limit {limit}: seconds, or HH:MM:SS; 5400 and 01:30:00 are the same.")
    return float(sum(int(p) * 60**i for i, p in enumerate(reversed(parts))))


def stop_files(stage_dir: Path) -> tuple[Path, Path]:
    """Where a stop file of the stage and one of the whole run stand."""
    return stage_dir / STOP_FILE, stage_dir.parent / STOP_FILE


def refuse_stop_file(stage_dir: Path) -> None:
    """Raises PreflightError where a stop file was there before the start."""
    for file in stop_files(stage_dir):
        if file.exists():
            raise PreflightError(f"{file} asks that nothing be trained here. Delete it to go on.")
