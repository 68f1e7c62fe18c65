"""What a stage's training is subject to from outside: who owns it, who asks it to stop, rehearsed faults."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from data_pipeline.errors import FoveaError, PreflightError
from trainer.distributed import World, all_sum
from trainer.engine.attempts import Attempt, Lease, end_of, last_save_s
from trainer.engine.faults import Fault, factor, strike
from trainer.engine.requests import REASONS, Requests, decide

_WAIT_S = 0.2  # for data, between two looks at the requests


class Waiting(Protocol):
    """A stream that can be asked whether its next step is there."""

    def ready(self, seconds: float) -> bool: ...
    def next(self) -> list[Any]: ...


@dataclass(kw_only=True)
class Oversight:
    """The parts of it, as one rank sees them: `lease` is the main rank's."""

    requests: Requests = field(default_factory=Requests)
    lease: Lease | None = None
    faults: Sequence[Fault] = ()

    def batches(self, stream: Waiting) -> list[Any]:
        """The stream's next step, or nothing where this rank is asked to stop while it waits."""
        while not stream.ready(_WAIT_S):
            if self.requests.asked():
                self.requests.abandoned = True
                return []
        return stream.next()

    def votes(self) -> list[float]:
        """What this rank saw, a number for each reason, to be summed over all ranks once a step."""
        return [float(self.lease is not None and self.lease.lost), *self.requests.votes()]

    def decide(self, votes: Sequence[float]) -> None:
        """The sums of all votes (all ranks). Raises Stopped where any rank is asked to stop, PreflightError
        where the stage has another owner."""
        if votes[0]:
            raise PreflightError(
                "another process has taken this stage over, as this one was silent for too long.\n"
                "  It stopped, and saved nothing more; the other one goes on."
            )
        decide(votes[1:])

    def strike(self, world: World, step: int) -> None:
        strike(self.faults, world.rank, step)

    def spoilt(self, world: World, step: int) -> float:
        """What a rehearsed fault multiplies this rank's gradients with."""
        return factor(self.faults, world.rank, step)

    def saving(self, world: World, step: int, save: Callable[[], object]) -> None:
        """Save, where the stage is still ours, and learn how long it takes (all ranks)."""
        (lost,) = all_sum(world, float(self.lease is not None and self.lease.lost))
        self.decide([lost, *[0.0] * len(REASONS)])
        began = time.monotonic()
        save()
        seconds = time.monotonic() - began
        self.requests.saved_in(seconds)
        if self.lease is not None:
            self.lease.saved(step, seconds)


@contextmanager
def owned(
    world: World, stage_dir: Path, recipe: str, requests: Requests, faults: Sequence[Fault]
) -> Iterator[Oversight]:
    """The stage is this run's while inside (all ranks). The lease notes the exit code it ends with.

    Raises PreflightError on all ranks where somebody else holds it, NoProgressError where it leads nowhere.
    """
    lease, refused = None, None
    if world.is_main:
        requests.margin.save_s = last_save_s(stage_dir)
        try:
            lease = Lease.take(stage_dir, Attempt.here(recipe))
        except FoveaError as e:
            refused = e
    (code,) = all_sum(world, float(refused.exit_code if refused else 0))
    if code:
        refused = refused or FoveaError("rank 0 was refused the stage, and said why.")
        refused.exit_code = int(code)
        raise refused
    if lease is None:
        yield Oversight(requests=requests, faults=faults)
        return
    ended = end_of(None)
    try:
        yield Oversight(requests=requests, lease=lease, faults=faults)
    except BaseException as e:
        ended = end_of(e)
        raise
    finally:
        lease.release(ended)
