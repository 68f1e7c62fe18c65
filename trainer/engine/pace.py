"""Where a rank's time goes: waiting for data, its own work, waiting for others. And which rank is slow."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

_OF_PHASE = {
    "data": "data",
    "forward": "forward and backward",
    "backward": "forward and backward",
    "update": "update",
}
OWN = ("data", "forward and backward", "update")
"""What a rank spends its own time on, in steps."""

_WAITING = "communication"
_LEAST_S = 0.01  # a step: less is no reason to say anything


class Pace:
    """The seconds of one rank, by what they went into. What it waits for a collective within a phase counts
    as communication. Under NCCL that is only where the host waits: the rest passes within the kernels."""

    def __init__(self) -> None:
        self._phase, self._since = "setup", time.perf_counter()
        self._waiting_since: float | None = None
        self._waited = 0.0
        self._spent = dict.fromkeys((*OWN, _WAITING), 0.0)
        self._at_data = 0.0
        self._waits, self._own = (0.0, 0.0), [0.0] * len(OWN)

    @property
    def worked_s(self) -> float:
        """Its own work in this step, so far."""
        self._count(time.perf_counter())
        return self._worked() - self._at_data

    def enter(self, phase: str) -> None:
        self._count(time.perf_counter())
        if phase == "data":
            self._at_data = self._worked()
        self._phase = phase

    def wait(self, waiting: bool) -> None:
        """This rank begins or ends to wait for a collective."""
        now = time.perf_counter()
        if waiting:
            self._waiting_since = now
        elif self._waiting_since is not None:
            self._waited += now - self._waiting_since
            self._waiting_since = None

    def waits(self) -> tuple[float, float]:
        """Seconds that it waited for data and for other ranks, since this was last asked."""
        self._count(time.perf_counter())
        before, self._waits = self._waits, (self._spent["data"], self._spent[_WAITING])
        data, communication = (new - old for new, old in zip(self._waits, before, strict=True))
        return data, communication

    def own(self) -> list[float]:
        """Seconds of its own by OWN, since this was last asked."""
        self._count(time.perf_counter())
        before, self._own = self._own, [self._spent[kind] for kind in OWN]
        return [new - old for new, old in zip(self._own, before, strict=True)]

    def _worked(self) -> float:
        return sum(self._spent[kind] for kind in OWN)

    def _count(self, now: float) -> None:
        seconds, waited = now - self._since, self._waited
        self._since, self._waited = now, 0.0
        if self._phase == _WAITING:
            self._spent[_WAITING] += seconds
        elif kind := _OF_PHASE.get(self._phase):
            self._spent[kind] += seconds - waited
            self._spent[_WAITING] += waited


@dataclass(frozen=True, kw_only=True)
class Straggler:
    """A rank whose own work takes longer than that of the others. Seconds a step; `others_s`: their median;
    `cause`: what of its own work exceeds theirs most."""

    rank: int
    own_s: float
    others_s: float
    cause: str


def straggler(seconds: Sequence[Sequence[float]], factor: float) -> Straggler | None:
    """The slowest of two ranks or more, where its own time is more than `factor` times the median of the
    others'. `seconds` a step: of each rank, by OWN."""
    rank = max(range(len(seconds)), key=lambda r: sum(seconds[r]))
    others = [s for r, s in enumerate(seconds) if r != rank]
    own_s, others_s = sum(seconds[rank]), median(map(sum, others))
    if own_s <= factor * others_s or own_s - others_s < _LEAST_S:
        return None
    excess = [
        mine - median(theirs) for mine, theirs in zip(seconds[rank], zip(*others, strict=True), strict=True)
    ]
    return Straggler(rank=rank, own_s=own_s, others_s=others_s, cause=OWN[excess.index(max(excess))])


def say(found: Straggler, host: str, step: int, steps: int, stage_dir: Path) -> None:
    """A line on the screen and an event (main rank)."""
    line = (
        f"rank {found.rank}{f' on {host}' if host else ''} is slow: {found.own_s:.3g} s a step of its own "
        f"over the last {steps} steps, the others {found.others_s:.3g} s; most of it in {found.cause}"
    )
    sys.stderr.write(f"fovea: step {step}: {line}\n")
    event = {
        "time": time.time(),
        "event": "straggler",
        "step": step,
        "rank": found.rank,
        "host": host,
        "own_s": found.own_s,
        "others_s": found.others_s,
        "cause": found.cause,
    }
    stage_dir.mkdir(parents=True, exist_ok=True)
    with (stage_dir / "events.jsonl").open("a", encoding="utf-8") as f:
        f.write(json.dumps(event) + "\n")
