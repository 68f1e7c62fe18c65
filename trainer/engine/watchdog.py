"""The watchdog: a rank that hangs or dies ends the run on all ranks, within a limit that is learnt by phase.

A thread of each rank looks at where the others stand (`positions.py`) once its own rank stands still. Ranks
enter the same phases in the same order, so the one that is furthest behind is the one that the others wait
for: its limit counts, not theirs. Whichever sees it first says so; all leave their stacks, and end with 75.
Imports no torch.
"""

import contextlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn
from uuid import uuid4

import psutil
from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.errors import TransientError, printable
from data_pipeline.manifest import write_json
from trainer.engine.positions import (
    ENDED,
    FAILED,
    Marker,
    Phase,
    Position,
    dump_other,
    dump_own,
    page_of,
    stacks_dir,
)
from trainer.launch import kill_all, report_error

UNWATCHED_S = 600.0
"""What a collective may take where nobody watches, or before."""

_TICK_S = 1.0  # between two looks of the thread, at most
_WRITE_THROUGH_S = 10.0
_GATHER_S = 3.0  # for the stacks of all ranks
_SHOWN = 8  # samples in the line


class Watchdog(BaseModel):
    """The policy, as a recipe says it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(True, description="whether there is one")
    factor: float = Field(5.0, gt=1, description="a phase may last so many times the longest one seen")
    floor_s: float = Field(120.0, gt=0, description="the shortest limit, in seconds")
    first_s: float = Field(600.0, gt=0, description="the limit of phases that were not seen twice yet")
    straggler_factor: float = Field(
        1.5, gt=1, description="a rank is called slow whose own work takes so many times the others' median"
    )
    straggler_steps: int = Field(20, ge=1, description="steps over which ranks are compared")

    @property
    def longest_s(self) -> float:
        """The highest limit there is, and that of what comes before the first step."""
        return self.factor * max(self.floor_s, self.first_s)

    @property
    def collective_s(self) -> float:
        """The time-out of collectives: later than whatever is found here."""
        return self.longest_s + self.floor_s + UNWATCHED_S if self.enabled else UNWATCHED_S


class Limits:
    """What each phase may last: learnt from those that ended. The first is no example, for it may compile."""

    def __init__(self, policy: Watchdog) -> None:
        self._policy = policy
        self._longest: dict[str, float] = {"setup": policy.longest_s}

    def of(self, phase: str) -> float:
        p = self._policy
        if phase == "setup":
            return p.longest_s
        longest = self._longest.get(phase, 0.0)
        return min(max(p.floor_s, p.factor * longest), p.longest_s) if longest else p.first_s

    def ended(self, phase: str, seconds: float) -> None:
        if phase in self._longest:
            self._longest[phase] = max(self._longest[phase], seconds)
        else:
            self._longest[phase] = 0.0


def judge(positions: Iterable[Position], stood: Mapping[int, float]) -> tuple[Position, ...]:
    """The ranks that all others wait for, once they `stood` still longer than they may (seconds by rank); all
    ranks where none is behind the others. Of ranks at one place, those whose processes were stopped or are
    gone, as far as this machine can tell: the others may wait for them within a collective."""
    positions = tuple(positions)
    last = min(p.order for p in positions)
    behind = tuple(p for p in positions if p.order == last)
    if not all(stood[p.rank] > p.limit_s for p in behind):
        return ()
    return tuple(p for p in behind if p.state) or behind


def sentence(behind: Sequence[Position], ranks: int, seconds: float, stacks: Path) -> str:
    """The line about ranks that hang."""
    at = behind[0]
    who = "all ranks" if 1 < len(behind) == ranks else "rank " + ", ".join(str(p.rank) for p in behind)
    hosts = ", ".join(sorted({p.host for p in behind} - {""})) or "an unknown host"
    states = sorted({p.state for p in behind} - {""})
    others = "; the other ranks wait for it" if len(behind) < ranks else ""
    shown, more = at.samples[:_SHOWN], len(at.samples[_SHOWN:]) + at.samples_left_out
    samples = f". Samples of rank {at.rank}: {', '.join(shown)}{f' and {more} more' if more else ''}"
    return printable(
        f"{who} on {hosts} stood still in {at.place} for {seconds:.0f} s (limit {at.limit_s:.0f} s)"
        + "".join(f", {state}" for state in states)
        + others
        + (samples if shown else "")
        + f". Stacks of all ranks: {stacks}"
    )


def death(stage_dir: Path, rank: int, how: str, pids: Sequence[int]) -> str:
    """What is known of a rank of this machine that was killed, as a launcher sees it; the others leave their
    stacks. `pids`: the processes of all ranks."""
    found = (Position.read(page_of(stage_dir, r)) for r in range(len(pids)))
    positions = {p.rank: p for p, pid in zip(found, pids, strict=True) if p is not None and p.pid == pid}
    if rank not in positions:
        return ""  # it had not come so far
    at = positions[rank]
    directory = stacks_dir(stage_dir, at.step)
    shutil.rmtree(directory, ignore_errors=True)  # of an earlier attempt
    for position in positions.values():
        dump_other(stage_dir, directory / f"rank_{position.rank}.txt", position)
    _note(stage_dir, "death", at, signal=how, stacks=str(directory))
    return f" on {at.host} in {at.place} (stacks of all ranks: {directory})"


class Watch:
    """One rank's part. `at_end`: called before a rank that hangs, or waits for one that does, ends."""

    def __init__(
        self,
        policy: Watchdog,
        stage_dir: Path,
        *,
        attempt: int,
        rank: int,
        ranks: int,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._policy, self._stage_dir, self._at_end = policy, stage_dir, at_end
        self._attempt, self._rank, self._ranks = attempt, rank, ranks
        self._limits = Limits(policy)
        self._phase, self._since = "setup", time.monotonic()
        self.marker = Marker(stage_dir, rank, attempt, self._limits.of("setup"))
        self._verdict = stage_dir / "watch" / f"verdict_{attempt}.json"
        self._seen: dict[int, tuple[tuple[int, int, bool], float]] = {}
        self._last, self._stood = self.marker.order, 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def enter(self, phase: Phase, step: int) -> None:
        """This rank is at something else now."""
        now = time.monotonic()
        self._limits.ended(self._phase, now - self._since)
        self._phase, self._since = phase, now
        self.marker.enter(phase, step, self._limits.of(phase))

    def hold(self, samples: Sequence[str]) -> None:
        """What its batch is made of."""
        self.marker.hold(samples[:_SHOWN], len(samples[_SHOWN:]))

    def close(self, failed: bool = False) -> None:
        """Nobody needs to wait for this rank any more, or it broke. Does not return where the run is being
        ended: this thread must not end the process before its stacks are written."""
        self._done.set()
        self._thread.join()
        self.marker.end(FAILED if failed else ENDED, self._policy.floor_s)

    def _run(self) -> None:
        tick = min(_TICK_S, self._policy.floor_s / 20)
        last = written = time.monotonic()
        while not self._done.wait(tick):
            now = time.monotonic()
            # A process that was stopped as a whole has not waited meanwhile.
            lived, last = min(now - last, 2 * tick), now
            order = self.marker.order
            stood = self._stood + lived if order == self._last else 0.0
            if (self._stood == 0.0 and stood) or now - written > _WRITE_THROUGH_S:
                self.marker.write_through()
                written = now
            self._last, self._stood = order, stood
            if stood > self._policy.floor_s / 10:
                self._look(lived)
            else:
                self._seen.clear()

    def _look(self, lived: float) -> None:
        """Where the others stand. Does not return where the run has to end."""
        if self._verdict.exists():
            self._end(json.loads(self._verdict.read_text(encoding="utf-8"))["stacks"])
        positions = self._positions()
        stood = {}
        for p in positions:
            order, seconds = self._seen.get(p.rank, (None, 0.0))
            seconds = seconds + lived if order == p.order else 0.0
            self._seen[p.rank] = p.order, seconds
            stood[p.rank] = float("inf") if p.phase not in (ENDED, FAILED) and p.is_gone else seconds
        stood[self._rank] = self._stood
        if behind := judge(positions, stood):
            self._accuse(behind, max(self._seen[p.rank][1] for p in behind))

    def _accuse(self, behind: Sequence[Position], seconds: float) -> NoReturn:
        stacks = stacks_dir(self._stage_dir, behind[0].step)
        line = sentence(behind, self._ranks, max(seconds, self._stood), stacks)
        with contextlib.suppress(OSError):  # a full disk: each rank then ends by what it sees itself
            if not self._is_first(stacks, line):
                self._end(json.loads(self._verdict.read_text(encoding="utf-8"))["stacks"])
            _note(self._stage_dir, "hang", behind[0], line=line, stacks=str(stacks))
        report_error(TransientError(f"{line}\n  The same command goes on from the newest checkpoint."))
        self._end(str(stacks), first=True)

    def _is_first(self, stacks: Path, line: str) -> bool:
        """Whether no other rank has come to a verdict before."""
        mine = self._verdict.with_name(f".{uuid4().hex}")
        write_json(mine, {"stacks": str(stacks), "line": line})
        shutil.rmtree(stacks, ignore_errors=True)  # of an earlier attempt
        try:
            os.link(mine, self._verdict)
        except FileExistsError:
            return False
        finally:
            mine.unlink()
        return True

    def _end(self, stacks: str, first: bool = False) -> NoReturn:
        """Leave the stacks, and see that others do; then end this process and those that it started."""
        with contextlib.suppress(OSError):
            self._leave_stacks(Path(stacks), first)
        with contextlib.suppress(OSError):
            self._at_end()
        kill_all(psutil.Process().children(recursive=True))
        os._exit(TransientError.exit_code)

    def _leave_stacks(self, directory: Path, first: bool) -> None:
        positions = self._positions()
        mine = next(p for p in positions if p.rank == self._rank)
        dump_own(directory / f"rank_{self._rank}.txt", mine)
        here = [p for p in positions if p.host == socket.gethostname()]
        for p in here:
            if p.state:  # it will not do so itself
                dump_other(self._stage_dir, directory / f"rank_{p.rank}.txt", p)
        for others in (here, positions if first else []):
            _await([directory / f"rank_{p.rank}.txt" for p in positions], _GATHER_S / 2)
            for p in others:
                if not (file := directory / f"rank_{p.rank}.txt").exists():
                    dump_other(self._stage_dir, file, p)

    def _positions(self) -> list[Position]:
        """Of all ranks; one that left nothing yet has not come as far as the others."""
        found = (Position.read(page_of(self._stage_dir, rank)) for rank in range(self._ranks))
        return [
            p
            if p is not None and p.attempt == self._attempt
            else Position(rank=rank, limit_s=self._policy.first_s)
            for rank, p in enumerate(found)
        ]


def _note(stage_dir: Path, event: str, at: Position, **more: str) -> None:
    """A line of events.jsonl."""
    line = {
        "time": time.time(),
        "event": event,
        "rank": at.rank,
        "host": at.host,
        "phase": at.phase,
        "module": at.module,
        "step": at.step,
        "samples": list(at.samples),
        **more,
    }
    with (stage_dir / "events.jsonl").open("a", encoding="utf-8") as f:
        f.write(json.dumps(line) + "\n")


def _await(files: Sequence[Path], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not all(f.exists() for f in files) and time.monotonic() < deadline:
        time.sleep(0.05)
