"""What a run directory holds, read for showing: whatever is there, whatever state the run is in.

A report is made of running, killed and finished runs alike. So nothing here raises because a file is absent
or cut off: such a part is empty, and `faults` says what was there and could not be read.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest, read_manifest
from trainer.observe.goodput import Goodput, goodput_of

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, ten times as fast, where it is built


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One evaluation of one checkpoint: results.json and examples.json."""

    stage: str
    step: int
    results: dict[str, Any]
    examples: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Benchmarked:
    """One task on one checkpoint: TASK.json. `worse`: how it is surely worse than at an earlier step, from
    what `fovea watch` notes; None where it is not, or nobody watched. `examples`: its best and worst answers;
    `samples`: the file with all of them."""

    step: int
    page: dict[str, Any]
    worse: dict[str, Any] | None = None
    examples: dict[str, Any] = field(default_factory=dict)
    samples: Path | None = None


@dataclass(frozen=True, slots=True)
class StageRecord:
    """A stage of the recipe (`spec`, empty where only a directory speaks of it) and what it left behind."""

    name: str
    spec: dict[str, Any]
    steps: list[dict[str, Any]]
    evaluations: list[Evaluated]
    goodput: Goodput | None = None
    incidents: list[dict[str, Any]] = field(default_factory=list)
    benchmarks: list[Benchmarked] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RunRecord:
    directory: Path
    run: dict[str, Any]
    recipe: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any]
    commands: str
    summary: dict[str, Any]
    stages: list[StageRecord]
    manifests: list[Manifest]
    faults: list[str] = field(default_factory=list)


def read_run(directory: Path, dataset: Path | None = None) -> RunRecord:
    """Everything under `directory`; the manifest from `dataset`, else those that the recipe names."""
    faults: list[str] = []
    recipe_text = _text(directory / "recipe.resolved.yaml")
    recipe = _recipe(recipe_text, faults)
    return RunRecord(
        directory=directory,
        run=_object(directory / "run.json", faults),
        recipe=recipe,
        recipe_text=recipe_text,
        environment=_object(directory / "env.json", faults),
        commands=_text(directory / "commands.txt").strip(),
        summary=_object(directory / "summary.json", faults),
        stages=_stages(directory, recipe, faults),
        manifests=_manifests(directory, recipe, dataset, faults),
        faults=faults,
    )


def stage_specs(directory: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """The recipe's name, and its stages in their order; empty where there is none that can be read."""
    recipe = _recipe(_text(directory / "recipe.resolved.yaml"), [])
    return str(recipe.get("name") or ""), _specs(recipe)


def _specs(recipe: dict[str, Any]) -> dict[str, dict[str, Any]]:
    listed = recipe.get("stages")
    return {
        str(s["name"]): s
        for s in (listed if isinstance(listed, list) else [])
        if isinstance(s, dict) and "name" in s
    }


def _stages(directory: Path, recipe: dict[str, Any], faults: list[str]) -> list[StageRecord]:
    """The recipe's stages in its order, then directories that look like a stage and are not in it."""
    specs = _specs(recipe)
    found = {p.parent.name for p in directory.glob("*/metrics.jsonl")}
    found |= {p.parent.name for p in directory.glob("*/eval") if p.is_dir()}
    return [
        _stage(directory / name, specs.get(name, {}), faults)
        for name in [*specs, *sorted(found - set(specs))]
    ]


def _stage(directory: Path, spec: dict[str, Any], faults: list[str]) -> StageRecord:
    steps = _metrics(directory / "metrics.jsonl", faults)
    about = [_object(p, faults) for p in sorted((directory / "incidents").glob("step_*/incident.json"))]
    return StageRecord(
        directory.name,
        spec,
        steps,
        _evaluations(directory, faults),
        goodput_of(directory, steps),
        [a for a in about if a],
        _benchmarks(directory, faults),
    )


def _metrics(path: Path, faults: list[str]) -> list[dict[str, Any]]:
    """One record a step, in order. A resumed run repeats steps: the last record of a step counts."""
    by_step: dict[int, dict[str, Any]] = {}
    lines = _text(path).splitlines()
    bad = 0
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            bad += 1
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            by_step[record["step"]] = record
        else:
            bad += 1
    if bad:
        faults.append(f"{path.parent.name}/{path.name}: {bad} of {len(lines)} lines could not be read")
    return [by_step[s] for s in sorted(by_step)]


def _evaluations(stage: Path, faults: list[str]) -> list[Evaluated]:
    found = []
    for directory in (stage / "eval").glob("step_*"):
        number = directory.name.removeprefix("step_")
        results = _object(directory / "results.json", faults)
        if not number.isdigit() or not results:
            continue
        examples = _json(directory / "examples.json", faults)
        kept = [e for e in examples if isinstance(e, dict)] if isinstance(examples, list) else []
        found.append(Evaluated(stage.name, int(number), results, kept))
    return sorted(found, key=lambda e: e.step)


def _benchmarks(stage: Path, faults: list[str]) -> list[Benchmarked]:
    """In the order of steps. Files that are no task's result are passed over: logs, failures, held-out."""
    found = []
    for directory in (stage / "eval").glob("step_*"):
        number = directory.name.removeprefix("step_")
        if not number.isdigit():
            continue
        noted = [_json(p, faults) for p in sorted(directory.glob("*.regressions.json"))]
        worse = {r.get("task"): r for rs in noted if isinstance(rs, list) for r in rs if isinstance(r, dict)}
        for path in sorted(directory.glob("*.json")):
            page = {} if path.name in ("results.json", "examples.json") else _object(path, faults)
            if {"task", "metric", "status"} <= page.keys():
                examples = _object(path.with_suffix(".examples.json"), faults)
                found.append(
                    Benchmarked(
                        int(number), page, worse.get(page["task"]), examples, path.with_suffix(".jsonl")
                    )
                )
    return sorted(found, key=lambda b: b.step)


def _manifests(
    directory: Path, recipe: dict[str, Any], dataset: Path | None, faults: list[str]
) -> list[Manifest]:
    """The manifests of the run's datasets, as far as they are built."""
    data = recipe.get("data")
    named = data.get("datasets") if isinstance(data, dict) else None
    names = [n for n in named if isinstance(n, str)] if isinstance(named, list) else ["data"]
    places = [dataset] if dataset is not None else [p for n in names if (p := directory / n).is_dir()]
    found = []
    for place in places:
        try:
            found.append(read_manifest(place))
        except DataError as e:
            faults.append(str(e).splitlines()[0])
    return found


def _recipe(text: str, faults: list[str]) -> dict[str, Any]:
    try:
        page = yaml.load(text, _Loader)
    except yaml.YAMLError:
        faults.append("recipe.resolved.yaml: not YAML")
        return {}
    return page if isinstance(page, dict) else {}


def _object(path: Path, faults: list[str]) -> dict[str, Any]:
    value = _json(path, faults)
    return value if isinstance(value, dict) else {}


def _json(path: Path, faults: list[str]) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        faults.append(f"{path.parent.name}/{path.name}: not JSON")
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
