"""`fovea compare`: two results of one task on the same samples, paired, and where they differ."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import ConfigError, DataError
from trainer.evaluation.files import load, load_lines
from trainer.evaluation.intervals import compare
from trainer.evaluation.outcome import PRIMARY, Said, each, scored
from trainer.evaluation.store import Record
from trainer.evaluation.task import Task


@dataclass(frozen=True)
class Result:
    """TASK.json, the task page in it, and the samples beside it."""

    path: Path
    page: Mapping[str, Any]
    task: Task
    records: list[Record]


def open_results(path: Path) -> dict[str, Result]:
    """The results at `path`, a TASK.json or a directory of them, by task.

    Raises ConfigError where there is none, DataError where one is incomplete or broken.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    found = {r.task.name: r for f in files if (r := _open(f)) is not None}
    if not found:
        raise ConfigError(f"{path} holds no result of a task; expected TASK.json of `fovea eval --task`")
    return found


def _open(path: Path) -> Result | None:
    page = load(path)
    if not isinstance(page, dict) or not {"task", "page", "status", "metric"} <= page.keys():
        return None
    if page["status"] == "incomplete":
        raise DataError(
            f"{path} is incomplete ({page['missing_n']} samples have no answer): run it again first"
        )
    try:
        task = Task.model_validate(page["page"])
    except ValueError as e:
        raise DataError(f"{path}: its task page is not one: {e}") from None
    records = load_lines(path.with_suffix(".jsonl"))
    if len(records) != page["n"]:
        raise DataError(
            f"{path.with_suffix('.jsonl')}: {len(records)} samples, {path.name} counts {page['n']}"
        )
    return Result(path, page, task, records)


def compare_results(a: Result, b: Result) -> dict[str, Any]:
    """B less A: each value with its interval, and the samples by difference. Raises DataError where the
    sample sets or the right answers differ."""
    if a.task.metric != b.task.metric:
        raise DataError(f"{a.path} counts {a.task.metric}, {b.path} counts {b.task.metric}")
    theirs = {r["id"]: r for r in b.records}
    ids = [r["id"] for r in a.records]
    _check_same(a, b, ids, theirs)
    other = [theirs[i] for i in ids]
    before, after = (
        scored(Said(r.task.metric, r.task.stop), records, r.page.get("text_to_image", ()))
        for r, records in ((a, a.records), (b, other))
    )
    alone = (each(a.task.metric, s) for s in (before, after))
    samples = [
        {
            "id": x["id"],
            "difference": new - old,
            "a": {"score": old, "answer": x.get("answer")},
            "b": {"score": new, "answer": y.get("answer")},
            "prompt": x.get("prompt"),
            "truths": x.get("labels", x["truths"]),
        }
        for x, y, old, new in zip(a.records, other, *alone, strict=True)
    ]
    primary = PRIMARY[a.task.metric]
    return {
        "task": a.task.name,
        "primary": primary,
        "n": len(ids),
        "a": {"file": str(a.path), "checkpoint": a.page["checkpoint"], primary: before.values[primary]},
        "b": {"file": str(b.path), "checkpoint": b.page["checkpoint"], primary: after.values[primary]},
        "differences": compare(after, before),
        "better": sum(s["difference"] > 0 for s in samples),
        "worse": sum(s["difference"] < 0 for s in samples),
        "samples": sorted(samples, key=lambda s: (s["difference"], s["id"])),
    }


def _check_same(a: Result, b: Result, ids: Sequence[str], theirs: Mapping[str, Record]) -> None:
    mine = {r["id"]: r for r in a.records}
    apart = [(x.path, sorted(m.keys() - n.keys())) for x, m, n in ((a, mine, theirs), (b, theirs, mine))]
    for path, only in apart:
        if only:
            shown = ", ".join(only[:5])
            raise DataError(
                f"{a.path} and {b.path} have different samples: {len(only)} are only in {path}: {shown}.\n"
                "  Evaluate both with the same --limit and seed."
            )
    # A ranked text has a score against all others: these must be the same ones.
    if a.page.get("text_to_image") != b.page.get("text_to_image"):
        raise DataError(f"{a.path} and {b.path} rank different texts")
    changed = [i for i in ids if json.dumps(mine[i]["truths"]) != json.dumps(theirs[i]["truths"])]
    if changed:
        raise DataError(f"{a.path} and {b.path} have other right answers for {', '.join(changed[:5])}")


def describe(found: Mapping[str, Any], shown: int) -> str:
    """For the screen: the values, and the samples that changed most."""
    name = found["primary"]
    lines = [
        f"{found['task']}: {name} {found['a'][name]:.4g} -> {found['b'][name]:.4g}, "
        f"{found['better']} samples better, {found['worse']} worse, of {found['n']}"
    ]
    for value, d in found["differences"].items():
        low, high = d["interval_95"]
        lines.append(f"  {value:<24} {d['difference']:+.4g}  [{low:+.4g}, {high:+.4g}]  p {d['p']:.3g}")
    changed = [s for s in found["samples"] if s["difference"]]
    changed.sort(key=lambda s: (-abs(s["difference"]), s["id"]))
    for s in changed[:shown]:
        lines.append(
            f"  {s['id']}: {s['difference']:+.4g}  {s['a']['answer']!r} -> {s['b']['answer']!r}  "
            f"(right: {s['truths'][0]!r})"
        )
    return "\n".join(lines)
