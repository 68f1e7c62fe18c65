"""What a stage's training is subject to from outside: who owns it, who asks it to stop, who watches that it
goes on, rehearsed faults."""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from data_pipeline.batch import Batch
from data_pipeline.errors import FoveaError, PreflightError, TransientError
from trainer.distributed import World, all_sum, lost_peers_are_transient, noting_waits
from trainer.engine.attempts import Attempt, Lease, end_of, last_save_s
from trainer.engine.faults import Fault, factor, strike, strike_save
from trainer.engine.pace import OWN, Pace, say, straggler
from trainer.engine.positions import Phase, Position, page_of
from trainer.engine.requests import REASONS, Requests, decide
from trainer.engine.watchdog import Watch, Watchdog
from trainer.mounts import refusals_named

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
    pace: Pace = field(default_factory=Pace)
    watch: Watch | None = None
    compared: int | None = None

    def enter(self, phase: Phase, step: int) -> None:
        """This rank is at something else now; all ranks enter the same phases in the same order."""
        self.pace.enter(phase)
        if self.watch is not None:
            self.watch.enter(phase, step)

    def follow(self, model: nn.Module) -> None:
        """Note which part of the model is at work: its modules, and the layers of those that repeat."""
        if self.watch is None:
            return
        for name, module in model.named_modules():
            parent = model.get_submodule(name.rpartition(".")[0]) if name else None
            if parent is model or isinstance(parent, nn.ModuleList):
                # Before DeepSpeed's own hook, which gathers weights and may wait there.
                module.register_forward_pre_hook(_Moved(self.watch, name), prepend=True)

    def hold(self, batches: Sequence[Batch]) -> None:
        """These are the samples that this rank is at."""
        if self.watch is not None:
            self.watch.hold([s for b in batches for row in b.sample_ids for s in row])

    def wait(self, waiting: bool) -> None:
        """This rank begins or ends to wait for a collective."""
        self.pace.wait(waiting)
        if self.watch is not None:
            self.watch.marker.wait(waiting)

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
        strike(self.faults, world.rank, step, self.pace.worked_s)

    def spoilt(self, world: World, step: int) -> float:
        """What a rehearsed fault multiplies this rank's gradients with."""
        return factor(self.faults, world.rank, step)

    def compare(self, world: World, step: int, stage_dir: Path, watchdog: Watchdog) -> None:
        """Every so many steps, whether one rank is slower than the others (all ranks)."""
        if world.size == 1 or not watchdog.enabled:
            return
        self.compared = step - 1 if self.compared is None else self.compared
        steps = step - self.compared
        if steps < watchdog.straggler_steps:
            return
        self.compared = step
        self.enter("communication", step)
        seconds = [0.0] * (world.size * len(OWN))
        seconds[world.rank * len(OWN) : (world.rank + 1) * len(OWN)] = [s / steps for s in self.pace.own()]
        seconds = all_sum(world, *seconds)
        by_rank = [seconds[at : at + len(OWN)] for at in range(0, len(seconds), len(OWN))]
        found = straggler(by_rank, watchdog.straggler_factor)
        if found and world.is_main:
            position = Position.read(page_of(stage_dir, found.rank))
            say(found, position.host if position else "", step, steps, stage_dir)

    @property
    def owner(self) -> bool:
        """Whether the stage is still ours, as far as this rank has to know."""
        return self.lease is None or not self.lease.lost

    def may_save(self, world: World, step: int) -> None:
        """Raises PreflightError where the stage has another owner (all ranks)."""
        self.enter("checkpoint", step)
        (lost,) = all_sum(world, float(not self.owner))
        self.decide([lost, *[0.0] * len(REASONS)])

    def writing(self, world: World, step: int) -> None:
        """This rank begins to write the checkpoint of that step."""
        strike_save(self.faults, world.rank, step)

    def committed(self, step: int, seconds: float) -> None:
        """A checkpoint has its name (rank 0, at once): this attempt has led somewhere, however it ends."""
        if self.lease is not None:
            self.lease.saved(step, seconds)

    def saved(self, seconds: float) -> None:
        """A checkpoint is there, so long after it was begun (all ranks)."""
        self.requests.saved_in(seconds)


class _Moved:
    """A hook: the rank is at that module."""

    def __init__(self, watch: Watch, name: str) -> None:
        self._move, self._name = watch.marker.move, name.encode()

    def __call__(self, module: nn.Module, inputs: object) -> None:
        self._move(self._name)


@contextmanager
def owned(
    world: World,
    stage_dir: Path,
    recipe: str,
    requests: Requests,
    faults: Sequence[Fault],
    watchdog: Watchdog,
) -> Iterator[Oversight]:
    """The stage is this run's while inside, and watched (all ranks). The lease notes the code it ends with.

    Raises PreflightError on all ranks where somebody else holds it, NoProgressError where it leads nowhere.
    """
    lease, refused = None, None
    if world.is_main:
        requests.margin.save_s = last_save_s(stage_dir)
        try:
            with refusals_named(stage_dir):
                lease = Lease.take(stage_dir, Attempt.here(recipe))
        except FoveaError as e:
            refused = e
    code, attempt = all_sum(world, float(refused.exit_code if refused else 0), lease.number if lease else 0)
    if code:
        refused = refused or FoveaError("rank 0 was refused the stage, and said why.")
        refused.exit_code = int(code)
        raise refused
    oversight = Oversight(requests=requests, lease=lease, faults=faults)
    if watchdog.enabled:
        release = (lambda: lease.release(TransientError.exit_code)) if lease else (lambda: None)
        with refusals_named(stage_dir):
            oversight.watch = Watch(
                watchdog, stage_dir, attempt=int(attempt), rank=world.rank, ranks=world.size, at_end=release
            )
    ended: BaseException | None = None
    try:
        # Inside: the lease, too, notes that it was a peer's fault.
        with noting_waits(oversight.wait), lost_peers_are_transient(world), refusals_named(stage_dir):
            yield oversight
    except BaseException as e:
        ended = e
        raise
    finally:
        if oversight.watch is not None:
            oversight.watch.close(failed=ended is not None)
        if lease is not None:
            with contextlib.suppress(OSError):  # the launcher notes the end where it can
                lease.release(end_of(ended))
