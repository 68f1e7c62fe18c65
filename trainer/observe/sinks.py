"""Where a step's numbers always go: `metrics.jsonl`, and a line on the screen."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.observe.stage_files import read_lines
from trainer.observe.timeline import note_rewind, note_start

Metrics = dict[str, float | int | str]


class Sink(Protocol):
    """Gets the numbers of each step on the main rank; `add`: more about a step, the last one written."""

    def write(self, metrics: Metrics) -> None: ...
    def add(self, step: int, metrics: Metrics) -> None: ...
    def close(self) -> None: ...


class JsonlSink:
    """One JSON object a line; what is not finite is null. On resume the lines after the checkpoint's step are
    cut off, `lost` of them; what they took stands in timeline.jsonl beside it."""

    def __init__(self, path: Path, resume_step: int) -> None:
        self._path = path
        kept, cut = self._divided(resume_step)
        self.lost = len(cut)
        note_start(path.parent, resume_step, cut)
        self._file = self._rewritten(kept)

    def rewind(self, step: int, place: dict[str, int]) -> None:
        """Cut off the lines after `step`, and say in its own where the data goes on."""
        self.close()
        kept, cut = self._divided(step)
        last = kept[-1] if kept and kept[-1]["step"] == step else None
        note_rewind(self._path.parent, step, last, cut)
        if last is not None:
            last |= place
        self._file = self._rewritten(kept)

    def _divided(self, last: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The lines up to step `last`, and those after it; without what a kill cut short."""
        lines = [line for line in read_lines(self._path) if isinstance(line.get("step"), int)]
        return [m for m in lines if m["step"] <= last], [m for m in lines if m["step"] > last]

    def _rewritten(self, lines: list[dict[str, Any]]) -> TextIO:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        temporary.replace(self._path)
        return self._path.open("a", encoding="utf-8")

    def write(self, metrics: Metrics) -> None:
        self._file.write(json.dumps(_plain(metrics)) + "\n")
        self._file.flush()

    def add(self, step: int, metrics: Metrics) -> None:
        """Into the step's own line: there is one a step."""
        self.close()
        kept, _ = self._divided(step)
        if kept and kept[-1]["step"] == step:
            kept[-1] |= _plain(metrics)
        self._file = self._rewritten(kept)

    def close(self) -> None:
        self._file.close()


def _plain(metrics: Metrics) -> dict[str, float | int | str | None]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}


class Screen:
    """A progress bar with loss, tokens/s and remaining time; plain lines where the output is no terminal."""

    def __init__(self, title: str, first: int, steps: int, every_s: float = 10.0) -> None:
        self._title, self._steps, self._every_s = title, steps, every_s
        self._first, self._began, self._said = first, time.monotonic(), 0.0
        self._bar: Progress | None = None
        if sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(),
            )
            self._task = self._bar.add_task(title, total=steps, completed=first, numbers="")
            self._bar.start()

    def write(self, metrics: Metrics) -> None:
        step = int(metrics["step"])
        numbers = f"loss {metrics['loss']:.4f}  {metrics['tokens_per_s']:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, numbers=numbers)
            return
        now = time.monotonic()
        if step == self._steps or step == self._first + 1 or now - self._said >= self._every_s:
            self._said = now
            left = (now - self._began) / (step - self._first) * (self._steps - step)
            self._say(f"{self._title}  step {step}/{self._steps}  {numbers}  {left:.0f} s left")

    def add(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self._say(f"{self._title}  step {step}  {name} {value:.4g}")

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line)
            return
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
