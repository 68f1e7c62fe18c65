"""A window of steps under torch.profiler, on the main rank: `STAGE/profile/steps_10_13.json`, a Chrome trace.

It listens as a sink does: the end of a step is the beginning of the next.
"""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from trainer.observe.sinks import Metrics


class ProfileWindow:
    """The steps `first` to `last`, with what follows each: sinks, and a checkpoint where one is due.

    `step`: the last one before this process. A window that has begun by then is what is left of it.
    """

    def __init__(self, first: int, last: int, step: int, directory: Path) -> None:
        self._first, self._last, self._directory = first, last, directory
        self._profile: profile | None = None
        self._after(step)

    def write(self, metrics: Metrics) -> None:
        step = int(metrics["step"])
        if self._profile is not None:
            self._profile.step()
        if step >= self._last:
            self.close()
        self._after(step)

    def add(self, step: int, metrics: Metrics) -> None:
        """What is said of a step once it is over has no time in it."""

    def close(self) -> None:
        """Write the trace down, of a window cut short too."""
        if self._profile is None:
            return
        self._profile.stop()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self._directory / f"steps_{self._first}_{self._last}.json"))
        self._profile = None

    def _after(self, step: int) -> None:
        if self._profile is None and self._first <= step + 1 <= self._last:
            activities = [ProfilerActivity.CPU]
            activities += [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profile = profile(activities=activities)
            self._profile.start()
