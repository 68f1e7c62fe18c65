"""What a bad step leaves behind: `STAGE/incidents/step_000123/` with its numbers, its samples, its rows.

incident.json  what was bad, what was done, gradient norms by module, samples with source, address, text and
               small pictures
rows.html      the packed rows: pictures, decoded text, targets, mask
"""

import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline.errors import FoveaError, printable
from data_pipeline.manifest import write_json
from trainer.config import Recipe, Stage
from trainer.engine.guard import Action, Bad
from trainer.explain import explain
from trainer.preview import preview
from trainer.thumbnails import with_content

ROWS = 16
"""Rows on the page, at most."""

PAGES = 100
"""Incidents of a stage that get samples and a page; later ones are lines of events.jsonl."""


def directory_of(stage_dir: Path, step: int) -> Path:
    return stage_dir / "incidents" / f"step_{step:06d}"


def write_incident(
    recipe: Recipe,
    stage: Stage,
    run_dir: Path,
    *,
    step: int,
    ranks: int,
    bad: Bad,
    action: Action,
    loss: float,
    norm: float,
    norms: dict[str, float],
) -> None:
    """Write down a bad step (main rank). What cannot be written is said, and is no reason to stop.

    A step that was bad before, and came again, replaces what stands there.
    """
    stage_dir = run_dir / stage.name
    directory = directory_of(stage_dir, step)
    about: dict[str, Any] = {
        "step": step,
        "reason": str(bad),
        **asdict(bad),
        "action": action,
        "loss": loss,
        "grad_norm": norm,
        "grad_norm_by_module": norms,
        "ranks": ranks,
        "time": time.time(),
    }
    try:
        stage_dir.mkdir(parents=True, exist_ok=True)
        _append(stage_dir, {"event": "bad step", **about})
        if directory.exists() or sum(1 for _ in directory.parent.glob("step_*")) < PAGES:
            directory.mkdir(parents=True, exist_ok=True)
            write_json(directory / "incident.json", plain(about))
            explained = explain(recipe, stage, run_dir, step, ranks)
            entries = with_content(recipe, stage, run_dir, explained.entries)
            write_json(directory / "incident.json", plain({**about, "samples": entries}))
            # As one rank would get them: all rows of the batch, not those of rank 0 alone.
            preview(recipe, stage, run_dir, directory / "rows.html", step=step, rows=ROWS)
    except (OSError, FoveaError) as e:
        sys.stderr.write(f"fovea: {printable(str(directory))} is not complete: {printable(str(e))}\n")


def note_event(stage_dir: Path, event: dict[str, Any]) -> None:
    """A line of events.jsonl (main rank). What cannot be written is said, and is no reason to stop."""
    try:
        _append(stage_dir, {**event, "time": time.time()})
    except OSError as e:
        sys.stderr.write(f"fovea: {printable(str(stage_dir / 'events.jsonl'))}: {printable(str(e))}\n")


def _append(stage_dir: Path, event: dict[str, Any]) -> None:
    with (stage_dir / "events.jsonl").open("a", encoding="utf-8") as f:
        f.write(json.dumps(plain(event)) + "\n")


def plain(value: Any) -> Any:
    """The same with numbers that JSON cannot hold as words: nan, inf."""
    match value:
        case dict():
            return {k: plain(v) for k, v in value.items()}
        case list() | tuple():
            return [plain(v) for v in value]
        case float() if not math.isfinite(value):
            return str(value)
        case _:
            return value
