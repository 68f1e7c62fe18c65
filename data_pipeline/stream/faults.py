"""What could not be read or decoded, and how much of it shows that the data is wrong and not the sample."""

import dataclasses
import json
import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import DataError

IN_A_ROW = 100
WINDOW = 1000
SHARE = 0.05


class BrokenSample(Exception):
    """A row of a sound shard that is no sample. `reason` is a closed phrase, to count; `detail` says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)  # both, so that a pickle can make it again
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One line of skipped.jsonl. `sample_id` is None where even that could not be read; `shard` is the path
    in its dataset and `row` counts from 0, so that the sample can be looked at."""

    sample_id: str | None
    source: str
    shard: str
    row: int
    reason: str
    detail: str = ""

    @property
    def where(self) -> str:
        return f"row {self.row} of {self.shard} (source '{self.source}')"

    def to_json(self, step: int) -> str:
        """One line, without its end; any control character of the data is escaped."""
        return json.dumps({"step": step, **dataclasses.asdict(self)})


def append_faults(path: Path, faults: Iterable[Fault], step: int) -> None:
    """Add a line each, with the step that met it: a step that is done again after a resume writes them again.

    A line is one write at the end of the file, so several processes may share it.
    """
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        for fault in faults:
            os.write(fd, (fault.to_json(step) + "\n").encode())
    finally:
        os.close(fd)


class Faults:
    """Counts what was met. Stops the run at `in_a_row` bad ones, or above `share` of the last `window`.

    There is no verdict on the share before `window` have been met.
    """

    def __init__(self, *, share: float = SHARE, window: int = WINDOW, in_a_row: int = IN_A_ROW) -> None:
        if not 0 <= share <= 1 or window < 1 or in_a_row < 1:
            raise ValueError(
                f"share {share}, window {window}, in_a_row {in_a_row}: 0..1, >= 1, >= 1 are allowed"
            )
        self.share, self.in_a_row = share, in_a_row
        self._window: deque[bool] = deque(maxlen=window)
        self._bad = 0
        self._bad_in_a_row = 0

    def good(self) -> None:
        self._bad_in_a_row = 0
        self._push(False)

    def bad(self, sample_id: str | None, reason: str, where: str = "") -> None:
        """Count one; `where` it stands is for the error. Raises DataError where they are too many."""
        self._bad_in_a_row += 1
        self._push(True)
        window = self._window.maxlen or 1
        full = len(self._window) == window
        if self._bad_in_a_row >= self.in_a_row or (full and self._bad > self.share * window):
            at = f", {where}" if where else ""
            raise DataError(
                f"{self._bad} of the last {len(self._window)} pictures and samples cannot be used "
                f"({self._bad_in_a_row} in a row), the last one in sample {sample_id}{at}: {reason}.\n"
                f"  Look at the dataset:  fovea data verify DIR"
            )

    def _push(self, bad: bool) -> None:
        if len(self._window) == self._window.maxlen:
            self._bad -= self._window[0]
        self._window.append(bad)
        self._bad += bad
