"""The report's section about benchmarks: each task's score against the step, by stage."""

import json
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from trainer.observe.charts import Interval, interval_chart
from trainer.observe.report_parts import mapping
from trainer.observe.report_samples import Changed, best_and_worst, changed
from trainer.observe.run_record import Benchmarked, StageRecord
from trainer.observe.wording import MISSING, finite, number


@dataclass(frozen=True, slots=True)
class Curve:
    """One task at the checkpoints of one stage, asked alike each time. `rows`: step, score, blind score."""

    title: str
    asked: str
    chart: Markup
    rows: list[tuple[int, str, str]]
    worse: list[str]
    changed: Changed | None
    extremes: list[tuple[str, list[dict[str, Any]]]]


def benchmark_curves(stages: list[StageRecord]) -> list[Curve]:
    """A chart for each stage and task. What was asked otherwise (another limit, seed or page) is another
    score, and gets a chart of its own."""
    curves = []
    for stage in stages:
        groups: dict[str, list[Benchmarked]] = {}
        for b in stage.benchmarks:
            if b.page["status"] != "incomplete":
                how = [b.page.get(key) for key in ("limit", "of", "seed", "page")]
                groups.setdefault(json.dumps([b.page["task"], how], sort_keys=True), []).append(b)
        curves += [_curve(stage.name, group) for _, group in sorted(groups.items())]
    return curves


def latest_scores(stages: list[StageRecord]) -> list[tuple[str, str, str]]:
    """Of each task, what its last checkpoint of the run scored: name, score, what belongs beside it."""
    newest = {
        str(b.page["task"]): (stage.name, b)
        for stage in stages
        for b in stage.benchmarks
        if b.page["status"] != "incomplete"
    }
    return [(task, *_headline(stage, b)) for task, (stage, b) in sorted(newest.items())]


def _headline(stage: str, b: Benchmarked) -> tuple[str, str]:
    name = str(b.page.get("primary"))
    score = finite(mapping(b.page.get("scores")).get(name))
    low, high = _ends(b.page, name, "interval_95")
    interval = f"[{low:.4g}, {high:.4g}], " if low is not None and high is not None else ""
    blind = number(mapping(b.page.get("blind")).get(name), 4)
    note = f"{name} {interval}blind {blind}; {_asked(b.page)}; {stage}, step {b.step:,}"
    return number(score, 4), note


def incomplete_tasks(stages: list[StageRecord]) -> list[str]:
    """What has no score, and how much of it is missing."""
    return [
        f"{stage.name}, step {b.step:,}: {b.page['task']}, {b.page.get('missing_n', MISSING)} samples"
        for stage in stages
        for b in stage.benchmarks
        if b.page["status"] == "incomplete"
    ]


def _curve(stage: str, found: list[Benchmarked]) -> Curve:
    page = found[-1].page
    name, task = str(page.get("primary")), str(page["task"])
    own, blind = (_interval(found, name, *keys) for keys in (_OWN, _BLIND))
    worse = [b.step for b in found if b.worse]
    return Curve(
        title=f"{task}, {stage}",
        asked=f"{name} of {_asked(page)}",
        chart=interval_chart(own, blind, worse, label=f"{name} of {task} in stage {stage}, by step"),
        rows=[(b.step, _said(b.page, name, *_OWN), _said(b.page, name, *_BLIND)) for b in found],
        worse=[_regression(b) for b in found if b.worse],
        changed=changed(*found[-2:]) if len(found) > 1 else None,
        extremes=best_and_worst(found[-1]),
    )


def _asked(page: dict[str, Any]) -> str:
    """200 of 1,146 samples."""
    samples, every = finite(page.get("n")), finite(page.get("of"))
    part = f" of {every:,.0f}" if page["status"] == "limited" and every is not None else ""
    return f"{MISSING if samples is None else format(samples, ',.0f')}{part} samples"


_OWN, _BLIND = ("scores", "interval_95"), ("blind", "blind_interval_95")


def _ends(page: dict[str, Any], name: str, interval: str) -> tuple[float | None, float | None]:
    ends = mapping(page.get(interval)).get(name)
    low, high = ends if isinstance(ends, list) and len(ends) == 2 else (None, None)
    return finite(low), finite(high)


def _interval(found: list[Benchmarked], name: str, value: str, interval: str) -> Interval:
    values = [finite(mapping(b.page.get(value)).get(name)) for b in found]
    ends = [_ends(b.page, name, interval) for b in found]
    there = [(b.step, v, *e) for b, v, e in zip(found, values, ends, strict=True) if v is not None]
    steps, scores, low, high = zip(*there, strict=True) if there else ((), (), (), ())
    return Interval(steps, scores, low, high)


def _said(page: dict[str, Any], name: str, value: str, interval: str) -> str:
    score, (low, high) = finite(mapping(page.get(value)).get(name)), _ends(page, name, interval)
    if score is None:
        return MISSING
    return f"{score:.4g}" + (f" [{low:.4g}, {high:.4g}]" if low is not None and high is not None else "")


def _regression(b: Benchmarked) -> str:
    found = mapping(b.worse)
    ends = found.get("interval_95")
    numbers = [finite(found.get("difference")), *map(finite, ends if isinstance(ends, list) else ())]
    change, *rest = (MISSING if n is None else f"{n:+.4g}" for n in numbers)
    interval = f" [{', '.join(rest)}]" if rest else ""
    return f"step {b.step:,}: {found.get('value')} {change}{interval} against {found.get('from')}"
