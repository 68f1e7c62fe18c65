"""A run on one screen: `fovea status`. It writes nothing and loads no torch.

All of it comes from the run directory; where there is a Slurm, its jobs about the run stand below.
"""

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from data_pipeline.errors import PreflightError, printable
from trainer.observe.goodput import Goodput, goodput_of
from trainer.observe.run_record import stage_specs
from trainer.observe.stage_files import (
    AttemptRecord,
    attempts_of,
    checkpoints_of,
    evaluated_steps,
    read_lines,
    steps_of,
)
from trainer.observe.wording import MISSING, compact, duration, finite, number, percent
from trainer.scheduler import RunJob, jobs_of_run

SILENT_S = 180.0
"""So long after its last heartbeat an owner that cannot be seen from here is shown as silent."""

RECENT = 200
"""Steps over which speed and remaining time are taken."""

_READ = 4 << 20  # bytes of metrics.jsonl, from its end: thousands of steps, within the time of a glance

_SAID = ("reason", "phase", "module", "cause", "signal")  # of an event, beside who and when

State = Literal["not begun", "starting", "running", "silent", "stopped", "done"]


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who trains the stage, or did last. `ended`: exit code; `heartbeat_s`: seconds since the last one."""

    attempt: int
    job: str
    host: str
    pid: int | None
    heartbeat_s: float
    ended: int | None


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """`checkpoint` is the newest with a COMPLETE.json, `checkpoint_age_s` its age. `left_s`: seconds to the
    last step at the recent speed. `goodput` covers the steps from `goodput_since` on."""

    name: str
    state: State
    step: int
    steps: int | None
    loss: float | None
    tokens_per_s: float | None
    left_s: float | None
    goodput: Goodput | None
    goodput_since: int | None
    checkpoint: int | None
    checkpoint_age_s: float | None
    owner: Owner | None
    incident: str | None
    evaluated: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    run: str
    name: str
    stages: tuple[StageStatus, ...]
    jobs: tuple[RunJob, ...] | None = None
    """Of Slurm; None where it was not asked, or is not there."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def status_of(run_dir: Path, now: float | None = None) -> RunStatus:
    """Raises PreflightError where `run_dir` is no run directory."""
    now = time.time() if now is None else now
    name, specs = stage_specs(run_dir)
    begun = {p.parent.name for kind in ("attempts", "metrics.jsonl") for p in run_dir.glob(f"*/{kind}")}
    chained = (run_dir / "jobs").is_dir()  # made by `fovea chain`, whose first job may wait for days
    if not specs and not begun and not chained:
        raise PreflightError(
            f"{run_dir} is no run directory: no stage has begun there, and it has no recipe.resolved.yaml.\n"
            "  Name the directory that `fovea train --run DIR` was given."
        )
    names = [*specs, *sorted(begun - set(specs))]
    stages = tuple(_stage(run_dir / stage, specs.get(stage, {}), now) for stage in names)
    return RunStatus(run=str(run_dir), name=name or run_dir.resolve().name, stages=stages)


def with_jobs(status: RunStatus) -> RunStatus:
    """And what Slurm says of the jobs about this run, and of those that trained its stages."""
    owners = [stage.owner.job for stage in status.stages if stage.owner and stage.owner.job]
    return replace(status, jobs=jobs_of_run(Path(status.run), owners))


def describe(status: RunStatus) -> Iterator[str]:
    """As lines for the screen."""
    yield f"{printable(status.name)}  {printable(status.run)}"
    if status.stages:
        heads = ("stage", "state", "step", "loss", "tokens/s", "left", "goodput")
        yield from _aligned([heads, *(_row(stage) for stage in status.stages)], left=2)
    else:
        yield "no stage has begun"
    for stage in status.stages:
        if stage.owner or stage.checkpoint is not None:
            yield ""
            yield printable(stage.name)
            yield from (f"  {label:11} {printable(text)}" for label, text in _details(stage))
    if status.jobs:
        yield ""
        yield "jobs"
        rows = [_job(job) for job in status.jobs]
        yield from (f"  {line}" for line in _aligned(rows, left=len(rows[0])))


def _aligned(rows: Sequence[tuple[str, ...]], left: int) -> Iterator[str]:
    """Cells under one another, the first `left` columns by their beginnings, the others by their ends."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()


def _job(job: RunJob) -> tuple[str, ...]:
    place = {"None": "", "0:0": ""}.get(job.reason, f"({job.reason})")
    cells = (job.number, job.name, job.state.lower(), job.elapsed, f"{job.nodes} {place}".strip())
    return tuple(map(printable, cells))


def _stage(stage_dir: Path, spec: dict[str, Any], now: float) -> StageStatus:
    metrics = stage_dir / "metrics.jsonl"
    lines = steps_of(read_lines(metrics, _READ))
    saved, attempts = checkpoints_of(stage_dir), attempts_of(stage_dir)
    step = lines[-1]["step"] if lines else (saved[0].step if saved else 0)
    steps = spec.get("steps") if isinstance(spec.get("steps"), int) else None
    newest = attempts[0] if attempts else None
    state = _state(newest, steps, saved[0].step if saved else 0, bool(lines), now)
    recent = lines[-RECENT:]
    seconds = [s for m in recent if (s := finite(m.get("step_s")))]
    tokens = sum(finite(m.get("tokens")) or 0 for m in recent)
    left = statistics.fmean(seconds) * (steps - step) if seconds and steps and state != "done" else None
    return StageStatus(
        name=stage_dir.name,
        state=state,
        step=step,
        steps=steps,
        loss=finite(lines[-1].get("loss")) if lines else None,
        tokens_per_s=tokens / sum(seconds) if seconds else None,
        left_s=left,
        goodput=goodput_of(stage_dir, lines),
        goodput_since=lines[0]["step"] if lines else None,
        checkpoint=saved[0].step if saved else None,
        checkpoint_age_s=max(0.0, now - saved[0].at) if saved else None,
        owner=_owner(newest, now) if newest else None,
        incident=_incident(stage_dir),
        evaluated=tuple(evaluated_steps(stage_dir)),
    )


def _state(attempt: AttemptRecord | None, steps: int | None, saved: int, stepped: bool, now: float) -> State:
    if steps is not None and saved >= steps:
        return "done"
    if attempt is None:
        return "stopped" if stepped or saved else "not begun"
    alive = attempt.runs_here
    if attempt.ended is not None or alive is False:
        return "stopped"
    if alive is None and now - attempt.alive_at > SILENT_S:
        return "silent"
    return "running" if stepped else "starting"


def _owner(attempt: AttemptRecord, now: float) -> Owner:
    record, place = attempt.record, attempt.record.get("place")
    pid = record.get("pid")
    return Owner(
        attempt=attempt.number,
        job=str(record.get("job") or ""),
        host=str(place.get("host", "")) if isinstance(place, dict) else "",
        pid=pid if isinstance(pid, int) else None,
        heartbeat_s=max(0.0, now - attempt.alive_at),
        ended=attempt.ended,
    )


def _incident(stage_dir: Path) -> str | None:
    """The last line of events.jsonl, in words."""
    events = read_lines(stage_dir / "events.jsonl", 1 << 20)
    if not events:
        return None
    last = events[-1]
    at = f"step {last['step']}: " if isinstance(last.get("step"), int) else ""
    who = f"rank {last['rank']} on {last.get('host') or 'this host'}" if "rank" in last else ""
    known = (who, *(str(last[key]) for key in _SAID if last.get(key)))
    what = ", ".join(filter(None, known)) or json.dumps(last)
    action = f"; {last['action']}" if last.get("action") else ""
    return f"{at}{last.get('event', 'event')}: {what.splitlines()[0]}{action}"


def _row(stage: StageStatus) -> tuple[str, ...]:
    return (
        printable(stage.name),
        stage.state,
        f"{stage.step:,}" + (f"/{stage.steps:,}" if stage.steps is not None else ""),
        MISSING if stage.loss is None else f"{stage.loss:.4f}",
        compact(stage.tokens_per_s),
        duration(stage.left_s) if stage.state in ("running", "stopped", "silent") else MISSING,
        percent(stage.goodput.share if stage.goodput else None),
    )


def _details(stage: StageStatus) -> Iterator[tuple[str, str]]:
    if stage.checkpoint is not None:
        yield (
            "checkpoint",
            f"step {number(stage.checkpoint)}, complete, {duration(stage.checkpoint_age_s)} old",
        )
    elif stage.owner:
        yield "checkpoint", "none yet"
    if owner := stage.owner:
        job = f"job {owner.job}, " if owner.job else ""
        who = f"{job}process {owner.pid} on {owner.host}, start {owner.attempt}"
        ended = f"exit code {owner.ended}, " if owner.ended is not None else ""
        yield "owner", f"{who}; {ended}last heartbeat {duration(owner.heartbeat_s)} ago"
    if stage.goodput and stage.goodput_since:
        since = f", from step {number(stage.goodput_since)} on" if stage.goodput_since > 1 else ""
        yield "time", f"{stage.goodput}{since}"
    if stage.incident:
        yield "incident", stage.incident
    if stage.evaluated:
        yield "evaluated", "steps " + ", ".join(map(number, stage.evaluated))
