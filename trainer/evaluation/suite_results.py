"""What a suite left of one checkpoint, in `STAGE/eval/step_N/`: whether it stands, and what became worse."""

import json
from pathlib import Path
from typing import Any

from data_pipeline.manifest import write_json
from trainer.evaluation.comparison import compare_results, open_results
from trainer.evaluation.config import Suite


def stands(results: Path, suite: Suite | None, digest: str) -> bool:
    """Whether the checkpoint of that digest has been evaluated as the suite says; None: held-out."""
    if suite is None:
        return bool(json_of(results / "results.json").get("checkpoint") == digest)
    return all(_stands(json_of(results / f"{name}.json"), suite, digest) for name in names_of(suite))


def _stands(page: dict[str, Any], suite: Suite, digest: str) -> bool:
    asked = {"limit": suite.limit, "seed": suite.seed}
    return (
        page.get("checkpoint", {}).get("digest") == digest
        and page.get("status") in ("complete", "limited")
        and asked.items() <= page.items()
    )


def note_regressions(results: Path, name: str, suite: Suite | None) -> list[dict[str, Any]]:
    """Those of `regressions`, kept for the report in SUITE.regressions.json."""
    found = regressions(results, suite)
    write_json(results / f"{name}.regressions.json", found)
    return found


def regressions(results: Path, suite: Suite | None) -> list[dict[str, Any]]:
    """Tasks that are worse than at the stage's best earlier checkpoint, surely (95 %, paired)."""
    found = []
    for name in names_of(suite) if suite else ():
        earlier = [
            (page["scores"][page["primary"]], path)
            for path in results.parent.glob(f"step_*/{name}.json")
            if _step(path.parent) < _step(results)
            and (page := json_of(path)).get("scores")
            and page.get("limit") == (suite and suite.limit)
        ]
        if earlier and json_of(results / f"{name}.json").get("scores"):
            best = max(earlier, key=lambda e: e[0])[1]
            ours, theirs = (open_results(p)[name] for p in (best, results / f"{name}.json"))
            compared = compare_results(ours, theirs)
            value = compared["primary"]
            change = compared["differences"][value]
            if change["interval_95"][1] < 0:
                found.append({"task": name, "value": value, "from": best.parent.name, **change})
    return found


def names_of(suite: Suite) -> list[str]:
    """Of its tasks, as their results are called."""
    return [Path(task).stem for task in suite.tasks]


def json_of(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none."""
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return page if isinstance(page, dict) else {}


def _step(directory: Path) -> int:
    return int(directory.name.removeprefix("step_"))
