"""Where a step's numbers go: `metrics.jsonl` always, TensorBoard where installed, a line on the screen."""

import importlib.util
import json
import math
import sys
import time
from pathlib import Path
from typing import TextIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Metrics = dict[str, float | int | str]


class JsonlSink:
    """One JSON object a line; what is not finite is null. On resume the lines after the checkpoint's step are
    cut off."""

    def __init__(self, path: Path, resume_step: int) -> None:
        self._path = path
        self._file = self._cut(resume_step, {})

    def rewind(self, step: int, place: dict[str, int]) -> None:
        """Cut off the lines after `step`, and say in its own where the data goes on."""
        self.close()
        self._file = self._cut(step, place)

    def _cut(self, last: int, place: dict[str, int]) -> TextIO:
        path, kept = self._path, []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    metrics = json.loads(line)
                    if metrics["step"] == last and place:
                        kept.append(json.dumps(metrics | place) + "\n")
                    elif metrics["step"] <= last:
                        kept.append(line + "\n")
                except (ValueError, KeyError):
                    continue  # a line that a kill cut short
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(path)
        return path.open("a", encoding="utf-8")

    def write(self, metrics: Metrics) -> None:
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
        self._file.write(json.dumps(plain) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoardSink:
    """Scalars for TensorBoard, where the package `tensorboard` is installed."""

    def __init__(self, directory: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  (optional package)

        self._writer = SummaryWriter(str(directory))

    @staticmethod
    def installed() -> bool:
        return importlib.util.find_spec("tensorboard") is not None

    def write(self, metrics: Metrics) -> None:
        for name, value in metrics.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, int(metrics["step"]))

    def close(self) -> None:
        self._writer.close()


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
            sys.stdout.write(f"{self._title}  step {step}/{self._steps}  {numbers}  {left:.0f} s left\n")
            sys.stdout.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
