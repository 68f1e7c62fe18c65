"""What metrics.jsonl cannot keep, as its lines are cut off: `STAGE/timeline.jsonl`, written by the main rank.

    {"event": "start", "time", "began", "pid", "step", "before"}     and how the last one with steps ended
    {"event": "lost", "time", "after", "steps", "since", "until"}    steps taken back, and their time
    {"event": "evaluation", "time", "step", "since", "until"}        the checkpoint of that step, evaluated

Goodput is computed from it (trainer/observe/goodput.py). `began` is when the process was born.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from trainer.observe.stage_files import AttemptRecord, attempts_of, read_lines
from trainer.observe.wording import finite

FILE = "timeline.jsonl"


def note_start(stage_dir: Path, step: int, cut: Sequence[dict[str, Any]]) -> None:
    """This process begins after `step`; `cut` are lines of later steps, by an attempt before it."""
    before = _attempt_before(stage_dir)
    if cut:
        ended = max(_until(line) for line in cut)
        if before is not None:
            ended = max(ended, before.alive_at)
        _note(stage_dir, "lost", after=step, steps=len(cut), since=_since(cut[0]), until=ended)
    process = psutil.Process()
    last: dict[str, Any] | None = None
    if before is not None:
        kept = {key: before.record.get(key) for key in ("ended", "saved", "save_s")}
        last = {"alive_at": before.alive_at, **kept}
    _note(stage_dir, "start", began=process.create_time(), pid=process.pid, step=step, before=last)


def note_rewind(
    stage_dir: Path, step: int, kept: dict[str, Any] | None, cut: Sequence[dict[str, Any]]
) -> None:
    """The run goes back to `step`, whose line is `kept`: `cut`, and the bad step after them, are lost."""
    since = _since(cut[0]) if cut else _until(kept) if kept else time.time()
    _note(stage_dir, "lost", after=step, steps=len(cut) + 1, since=since, until=time.time())


def note_evaluation(stage_dir: Path, step: int, since: float, until: float) -> None:
    """The checkpoint of `step` was evaluated between two steps, or a part of its suite was."""
    _note(stage_dir, "evaluation", step=step, since=since, until=until)


def _attempt_before(stage_dir: Path) -> AttemptRecord | None:
    """The attempt that wrote the last start: those since then came to no step."""
    starts = [line for line in read_lines(stage_dir / FILE) if line.get("event") == "start"]
    if not starts:
        return None
    who = (starts[-1].get("pid"), starts[-1].get("began"))
    return next(
        (a for a in attempts_of(stage_dir) if (a.record.get("pid"), a.record.get("began")) == who), None
    )


def _since(line: dict[str, Any]) -> float:
    return _until(line) - (finite(line.get("step_s")) or 0.0)


def _until(line: dict[str, Any]) -> float:
    return finite(line.get("time")) or time.time()


def _note(stage_dir: Path, event: str, **about: Any) -> None:
    stage_dir.mkdir(parents=True, exist_ok=True)
    with (stage_dir / FILE).open("a", encoding="utf-8") as f:
        f.write(json.dumps({"event": event, "time": time.time(), **about}) + "\n")
        f.flush()
        os.fsync(f.fileno())
