"""The report's section about training: stages, losses, speed, norms, memory, and where the time went."""

import statistics
from dataclasses import asdict, dataclass
from itertools import starmap
from typing import Any

from markupsafe import Markup

from trainer.observe import wording
from trainer.observe.charts import Line, line_chart
from trainer.observe.report_parts import mapping, total
from trainer.observe.run_record import StageRecord
from trainer.observe.wording import finite

COURSE: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("tokens_per_s", "Throughput, tokens a second", {"from_zero": True, "log": False}),
    ("mfu", "Model FLOPs utilisation", {"from_zero": True, "log": False}),
    ("grad_norm", "Norm of the gradient", {}),
    ("lr", "Learning rate", {"from_zero": True, "log": False, "smooth": False}),
    ("data_wait_s", "Waiting for data, seconds a step", {"from_zero": True, "log": False}),
    ("comm_wait_s", "Waiting for other ranks, seconds a step", {"from_zero": True, "log": False}),
    (
        "checkpoint_stall_s",
        "Stalled by checkpoints, seconds",
        {"from_zero": True, "smooth": False, "log": False},
    ),
    ("host_memory_gib", "Host memory of a rank, GiB", {"from_zero": True, "smooth": False, "log": False}),
    ("device_memory_gib", "Device memory, peak, GiB", {"from_zero": True, "smooth": False, "log": False}),
)


def stage_row(stage: StageRecord, colour: int) -> dict[str, Any]:
    steps = stage.steps
    rates = [v for m in steps if (v := finite(m.get("tokens_per_s"))) is not None]
    losses = [v for m in steps if (v := finite(m.get("loss"))) is not None]
    tail = losses[-max(1, len(losses) // 20) :]
    return {
        "name": stage.name,
        "colour": colour,
        "train": ", ".join(starmap(_trained, mapping(stage.spec.get("train")).items())) or wording.MISSING,
        "mixture": ", ".join(map(str, mapping(stage.spec.get("mixture")))) or wording.MISSING,
        "done": steps[-1]["step"] if steps else 0,
        "planned": stage.spec.get("steps"),
        "loss": wording.number(statistics.fmean(tail)) if tail else wording.MISSING,
        "tokens": wording.compact(total(steps, "tokens")) if steps else wording.MISSING,
        "images": wording.compact(total(steps, "images")) if steps else wording.MISSING,
        "rate": wording.compact(statistics.median(rates)) if rates else wording.MISSING,
        "time": wording.duration(total(steps, "step_s")) if steps else wording.MISSING,
    }


def _trained(module: str, how: Any) -> str:
    """A module, with the kind of its adapter where it has one."""
    kind = next((k for k in ("lora", "dora") if k in mapping(how)), None)
    return f"{module} ({kind})" if kind else str(module)


def loss_charts(stages: list[StageRecord]) -> list[tuple[str, Markup]]:
    charts = []
    for i, stage in enumerate(stages):
        if line := _line(stage, "loss", 0, i):
            charts.append((stage.name, line_chart([line], label=f"Loss of stage {stage.name}, by step")))
    return charts


def course_charts(stages: list[StageRecord]) -> list[tuple[str, Markup]]:
    """Speed, norms, waits and memory, as far as they were measured; all stages one after another."""
    charts = []
    for key, title, options in COURSE:
        lines, before = [], 0
        for i, stage in enumerate(stages):
            if line := _line(stage, key, before, i):
                lines.append(line)
            before += stage.steps[-1]["step"] if stage.steps else 0
        if lines:
            chart = line_chart(lines, label=f"{title}, by step", x_label="step, all stages", **options)
            charts.append((title, chart))
    return charts


def series_charts(
    stages: list[StageRecord], prefix: str, title: str
) -> list[tuple[str, Markup, list[tuple[str, int]]]]:
    """A chart a stage with a line for each key `prefix...`: title, chart, and (name, colour) of its lines."""
    charts = []
    for stage in stages:
        keys = sorted({key for m in stage.steps for key in m if key.startswith(prefix)})
        lines = [
            Line(key.removeprefix(prefix), line.x, line.y, i)
            for i, key in enumerate(keys)
            if (line := _line(stage, key, 0, i))
        ]
        if lines:
            chart = line_chart(lines, label=f"{title} of stage {stage.name}, by step")
            charts.append((f"{title}, {stage.name}", chart, [(line.name, line.colour) for line in lines]))
    return charts


@dataclass(frozen=True, slots=True)
class Bar:
    """The wall time of a stage: (part, share, duration) of what is more than nothing."""

    name: str
    share: str
    wall: str
    parts: list[tuple[str, float, str]]


def goodput_bars(stages: list[StageRecord]) -> list[Bar]:
    bars = []
    for stage in stages:
        if stage.goodput and stage.goodput.wall > 0:
            wall = stage.goodput.wall
            seconds = asdict(stage.goodput).items()
            parts = [(part, s / wall, wording.duration(s)) for part, s in seconds if s > 0]
            share = wording.percent(stage.goodput.share)
            bars.append(Bar(stage.name, share, wording.duration(wall), parts))
    return bars


def _line(stage: StageRecord, key: str, before: int, colour: int) -> Line | None:
    there = [m for m in stage.steps if key in m]
    if not there:
        return None
    values = [v if (v := finite(m[key])) is not None else float("nan") for m in there]
    return Line(stage.name, [before + m["step"] for m in there], values, colour)
