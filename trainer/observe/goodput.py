"""Where a stage's wall time went: the share in steps that count, and what took the rest.

A pure function of `timeline.jsonl` (starts, evaluations, and steps that were taken back:
trainer/observe/timeline.py), `metrics.jsonl` and the newest attempt. The parts sum to the wall time: a sweep
gives each moment to one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from trainer.observe.stage_files import AttemptRecord, attempts_of, read_lines
from trainer.observe.wording import finite, percent


@dataclass(kw_only=True)
class Goodput:
    """Seconds of wall time, from the first start to the last sign of life.

    productive: in steps that stand, but for their wait for data. checkpoint: no step is taken while one is
    saved. evaluation: of checkpoints, by the training itself. startup: before the first step. restart: from
    the end of an attempt to the first step of the next. wasted: in steps that were taken back, refused by the
    guard, or cut short by a kill. other: what is left.
    """

    productive: float = 0.0
    data: float = 0.0
    checkpoint: float = 0.0
    evaluation: float = 0.0
    startup: float = 0.0
    restart: float = 0.0
    wasted: float = 0.0
    other: float = 0.0

    @property
    def wall(self) -> float:
        return sum(getattr(self, f.name) for f in fields(self))

    @property
    def share(self) -> float | None:
        """Goodput: productive of wall time."""
        return self.productive / self.wall if self.wall > 0 else None

    def __str__(self) -> str:
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        said = [f"{name} {percent(s / self.wall)}" for name, s in parts.items() if s > 0.0005 * self.wall]
        return ", ".join(said)

    def __add__(self, other: "Goodput") -> "Goodput":
        return Goodput(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of time in which steps were done: one that stands, or (`line` None) some taken back; or in
    which a checkpoint was evaluated."""

    since: float
    until: float
    line: dict[str, Any] | None
    evaluated: bool = False


def goodput_of(stage_dir: Path, steps: list[dict[str, Any]]) -> Goodput | None:
    """Of the stage whose lines of metrics.jsonl are `steps`: where they begin later than with the first, of
    the time from there on. None where nothing recorded how the stage was started."""
    timeline = read_lines(stage_dir / "timeline.jsonl")
    attempts = attempts_of(stage_dir)
    starts = [t for t in timeline if t.get("event") == "start" and finite(t.get("time")) is not None]
    if not starts:
        return None
    noted = [t for t in timeline if t.get("event") in ("lost", "evaluation")]
    pieces = sorted(_pieces(steps, noted), key=lambda p: p.since)
    first = steps[0]["step"] if steps else 1
    began = finite(starts[0].get("began"))
    began = float(starts[0]["time"]) if began is None else began
    if first > 1 and pieces:  # older lines were not read
        began = max(began, next(p.since for p in pieces if p.line))
        pieces = [p for p in pieces if p.until > began]
    return _swept(began, starts, pieces, attempts[0] if attempts else None)


def _pieces(steps: list[dict[str, Any]], noted: list[dict[str, Any]]) -> Iterator[_Piece]:
    for line in steps:
        at, seconds = finite(line.get("time")), finite(line.get("step_s"))
        if at is not None and seconds is not None:
            yield _Piece(at - seconds, at, line)
    for took in noted:
        since, until = finite(took.get("since")), finite(took.get("until"))
        if since is not None and until is not None:
            yield _Piece(since, until, None, took["event"] == "evaluation")


def _swept(
    began: float, starts: list[dict[str, Any]], pieces: list[_Piece], newest: AttemptRecord | None
) -> Goodput:
    """Every moment between `began` and the end, given to one part, in the order of time."""
    out = Goodput()
    at, before = began, None
    ahead = [s for s in starts if s["time"] > began]
    for piece in pieces:
        between = [s for s in ahead if s["time"] <= piece.since]
        ahead = ahead[len(between) :]
        gap = max(0.0, piece.since - at)
        if before is None:
            out.startup += gap
        elif between:
            old = between[0].get("before") or {}
            tail = min(gap, max(0.0, (finite(old.get("alive_at")) or at) - at))
            _tail(out, tail, before, old)
            out.restart += gap - tail
        elif before.line is not None:
            _between_steps(out, gap, before.line, piece.line)
        elif before.evaluated:
            out.other += gap
        else:
            out.wasted += gap
        at = max(at, piece.since)
        _took(out, max(0.0, piece.until - at), piece)
        at, before = max(at, piece.until), piece
    if newest is not None:
        tail = max(0.0, newest.alive_at - at)
        if before is None:
            out.startup += tail
        elif ahead and (ahead[0].get("before") or {}).get("ended") != 0:  # it has not come to a step
            old = ahead[0].get("before") or {}
            dying = min(tail, max(0.0, (finite(old.get("alive_at")) or at) - at))
            _tail(out, dying, before, old)
            out.restart += tail - dying
        else:
            finished = next((s["before"] for s in ahead), None)  # a finished stage that was called again
            tail = tail if finished is None else max(0.0, finished["alive_at"] - at)
            _tail(out, tail, before, finished or newest.record)
    return out


def _took(out: Goodput, seconds: float, piece: _Piece) -> None:
    line = piece.line
    if piece.evaluated:
        out.evaluation += seconds
        return
    if line is None or line.get("guard"):
        out.wasted += seconds
        return
    waited = min(seconds, finite(line.get("data_wait_s")) or 0.0)
    out.data += waited
    out.productive += seconds - waited


def _between_steps(out: Goodput, gap: float, line: dict[str, Any], following: dict[str, Any] | None) -> None:
    """Between two steps of an attempt: saving, as far as its stall is known; where it is not, all of it."""
    stall = finite((following or {}).get("checkpoint_stall_s"))
    saving = gap if stall is None else min(gap, stall)
    out.checkpoint += saving
    out.other += gap - saving


def _tail(out: Goodput, seconds: float, before: _Piece, attempt: dict[str, Any]) -> None:
    """After the last step of an attempt: its last save, then its end; or a step that a kill cut short."""
    line = before.line or {}
    if before.evaluated and attempt.get("ended") in (0, 75, 143):
        out.other += seconds
        return
    if attempt.get("saved") is not None and attempt["saved"] == line.get("step"):
        saving = min(seconds, finite(attempt.get("save_s")) or 0.0)
        out.checkpoint += saving
        seconds -= saving
        if attempt.get("ended") in (0, 75, 143):
            out.other += seconds
            return
    out.wasted += seconds
