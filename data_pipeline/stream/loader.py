"""The stream of training batches: plan the global batch, make this rank's rows in worker processes, ahead."""

import hashlib
import socket
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Generator
from torch.utils.data import DataLoader

from data_pipeline.batch import Batch
from data_pipeline.errors import ConfigError, DataError, FoveaError, TransientError
from data_pipeline.stream.ahead import Ahead
from data_pipeline.stream.balance import assign
from data_pipeline.stream.faults import BrokenSample, Fault, Faults, append_faults
from data_pipeline.stream.fit import NOTES
from data_pipeline.stream.making import Made, Maker
from data_pipeline.stream.planner import Cursor, Plan, Planner
from data_pipeline.stream.processes import WorkerMemory, forkserver
from data_pipeline.stream.rendering import Rendering
from data_pipeline.stream.rows import Row
from data_pipeline.stream.shares import Shares
from data_pipeline.stream.sizes import Sizes
from data_pipeline.stream.source import Source

T = TypeVar("T")
_DEPTH = 1  # steps waiting; one more is in the making
_PREFETCHED = 16  # micro-batches of a worker, at most


@dataclass(frozen=True, eq=False)
class _Step:
    """A planned step. `ranks`: int64[world_size, micro-batches, micro_rows], the rows of each rank."""

    plan: Plan
    ranks: np.ndarray

    def rows(self, rank: int) -> Iterator[tuple[Row, ...]]:
        """The rows of each micro-batch of a rank."""
        for micro_batch in self.ranks[rank].tolist():
            yield tuple(self.plan.rows[row] for row in micro_batch)


class Stream:
    """Batches for one rank, without end.

    Every rank plans the same global batch of `global_rows` rows and takes its share of them, even in tokens
    and patches (`balance.py`): the global batch is the same for every world size that divides it. The state
    is a few numbers that know nothing of ranks and workers, so a run may go on with others.

    `workers`: processes that read, decode and collate; 0 does it in a thread of this one. They hold at most
    `prefetch_bytes` of finished batches, as far as one micro-batch each allows.
    `skipped_file`: gets a line for each sample that could not be used (`faults.py`).

    After `next()`, about the step it gave:
        `fill`       share of the global batch's positions that hold a token; the rest is padding
        `samples`    a digest of which sample stands where in it
        `imbalance`  (tokens, patches): the heaviest rank's share over the mean of all ranks
        `rows`       of each micro-batch of this rank, the pieces in its rows
    and since the start of the process:
        `skipped`    reason -> count; what the plan leaves out is counted on every rank alike, bad pictures
                     ("picture: ...") only on the rank that met them
    """

    def __init__(
        self,
        *,
        sources: Mapping[str, Source],
        sizes: Mapping[str, Sizes],
        shares: Shares,
        rendering: Rendering,
        global_rows: int,
        micro_rows: int,
        rank: int,
        world_size: int,
        seed: int,
        data_digest: str,
        workers: int = 0,
        prefetch_bytes: int = 1 << 30,
        skipped_file: Path | None = None,
    ) -> None:
        if global_rows % (micro_rows * world_size):
            raise ConfigError(
                f"global_rows {global_rows} is no multiple of micro_rows ({micro_rows}) "
                f"x world_size ({world_size})"
            )
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} is not one of {world_size} ranks")
        self.sources = sources
        self._sizes, self._shares, self._rendering = sizes, shares, rendering
        self._global_rows, self._micro_rows = global_rows, micro_rows
        self._rank, self._world_size, self._seed = rank, world_size, seed
        self._workers, self._prefetch_bytes = workers, prefetch_bytes
        self._skipped_file = skipped_file
        # Whatever changes the meaning of a cursor. Rows of a batch may change: a cursor does not know them.
        self._identity: dict[str, Any] = {
            "seed": seed,
            "data": data_digest,
            "rendering": rendering.key,
            "mixture": {**shares.to_json(), "splitting": rendering.splitting},
        }
        self._memory = WorkerMemory()
        self._ahead: Ahead[tuple[_Step, list[Made]]] | None = None
        self._faults = Faults()
        self._ledger = 0
        self._planner = self._plan_ledger()
        self._cursor = self._planner.start()
        self.step = 0
        self.fill = 0.0
        self.samples = ""
        self.imbalance = (1.0, 1.0)
        self.rows: tuple[tuple[Row, ...], ...] = ()
        self.skipped: Counter[str] = Counter()

    def next(self) -> list[Batch]:
        """This rank's micro-batches of the next step, in the order of accumulation."""
        step, made = self._started().next()
        self._write(self._left_out(step.plan))
        self._judge([fault for m in made for fault in m.met])
        self.fill, self.samples, self.imbalance = step.plan.fill, step.plan.rows.digest, _imbalance(step)
        self.rows = tuple(step.rows(self._rank))
        self.skipped.update(reason for _, _, reason in step.plan.skipped)
        self._cursor = step.plan.after
        self.step += 1
        return [m.batch for m in made]

    def ready(self, seconds: float) -> bool:
        """Wait that long at most for the next step; True once `next` would not wait for it."""
        return self._started().ready(seconds)

    def skip(self, steps: int) -> None:
        """Pass over steps without making their batches: as if `next` had been called so often."""
        self.close()
        for step in islice(self._steps(self._cursor), steps):
            self._cursor = step.plan.after
            self.step += 1

    def upcoming(self) -> tuple[Plan, np.ndarray]:
        """The plan of the step that `next` would give, and int64[world_size, micro-batches, micro_rows]: the
        rows of it that each rank takes. Nothing is read, and nothing moves."""
        step = next(self._steps(self._cursor))
        return step.plan, step.ranks

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON: where the stream stands after the steps that `next` gave, not those it prepared.

        `ledger` counts how often another dataset was accepted; window and row count from the last time.
        """
        return {
            **self._identity,
            "step": self.step,
            "ledger": self._ledger,
            "window": self._cursor.window,
            "row": self._cursor.row,
        }

    def load_state_dict(self, state: Mapping[str, Any], accept_changed_data: bool = False) -> None:
        """Go on from `state`. Raises DataError where it belongs to another stream.

        With `accept_changed_data` a dataset that differs begins a new ledger: its order begins anew, by a
        seed of its own, so what was seen before may come again.
        """
        changed = accept_changed_data and state.get("data") != self._identity["data"]
        for key, here in self._identity.items():
            if state.get(key) != here and not (changed and key == "data"):
                raise DataError(
                    f"the saved stream has {key} {state.get(key)!r}, this run has {here!r}.\n"
                    f"  Resume with what the run began with, or start a new run from its weights."
                )
        saved = {key: state.get(key) for key in ("step", "ledger", "window", "row")}
        place = {key: n for key, n in saved.items() if isinstance(n, int) and n >= 0}
        if place.keys() != saved.keys():
            raise DataError(f"the saved stream has no valid place: {saved}")
        self.close()
        self._ledger = place["ledger"] + changed
        self._planner = self._plan_ledger()
        self._cursor = self._planner.start() if changed else Cursor(place["window"], place["row"])
        self.step = place["step"]

    def close(self) -> None:
        """End the thread and the worker processes. A later `next` starts them again from here."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _started(self) -> Ahead[tuple[_Step, list[Made]]]:
        if self._ahead is None:
            self._faults = Faults()
            self._ahead = Ahead(self._made(self._cursor), _DEPTH)
        return self._ahead

    def _plan_ledger(self) -> Planner:
        seed = self._seed
        if self._ledger:
            salted = hashlib.blake2b(f"{seed}/ledger/{self._ledger}".encode(), digest_size=7)
            seed = int.from_bytes(salted.digest(), "little")
        splitting = self._rendering.splitting
        mixture = self._shares.mixture(self._sizes, seed, splitting)
        return Planner(self._sizes, mixture, self._rendering.budget, seed, splitting)

    def _steps(self, cursor: Cursor) -> Iterator[_Step]:
        while True:
            plan = self._planner.plan(cursor, self._global_rows)
            ranks = assign(plan.rows.tokens, plan.rows.patches, self._world_size, self._micro_rows)
            yield _Step(plan, ranks)
            cursor = plan.after

    def _made(self, cursor: Cursor) -> Iterator[tuple[_Step, list[Made]]]:
        """Steps with this rank's micro-batches."""
        planned: deque[_Step] = deque()

        def items() -> Iterator[tuple[Row, ...] | FoveaError]:
            try:
                for step in self._steps(cursor):
                    planned.append(step)
                    yield from step.rows(self._rank)
            except FoveaError as e:
                yield e  # takes its turn: the steps before it are still to come

        maker = Maker(self.sources, self._rendering, self._seed)
        options: dict[str, Any] = {}
        if self._workers:
            options = {"multiprocessing_context": forkserver(), "prefetch_factor": self._prefetch()}
        loader = DataLoader(
            maker,
            batch_size=None,
            sampler=items(),
            collate_fn=_as_it_is,
            num_workers=self._workers,
            # Its first draw shall not be one of the step's: a resumed run would have other noise there.
            generator=Generator(),
            **options,
        )
        made = iter(loader)
        micro_batches = self._global_rows // (self._micro_rows * self._world_size)
        while True:
            mine: list[Made] = []
            for m in islice(self._watched(made), micro_batches):
                if isinstance(m, FoveaError):
                    raise m
                mine.append(m)
            yield planned.popleft(), mine

    def _watched(self, made: Iterator[Made | FoveaError]) -> Iterator[Made | FoveaError]:
        """A worker that dies is trouble of the machine, not of the data: what is wrong there is a value."""
        try:
            for m in made:
                self._memory.look(getattr(made, "_workers", ()))
                yield m
        except (RuntimeError, OSError, EOFError) as e:
            if isinstance(e, RuntimeError) and "DataLoader worker" not in str(e):
                raise
            raise TransientError(
                f"a data worker of rank {self._rank} on {socket.gethostname()} was ended from outside "
                f"(out of memory?); the same command resumes.\n  {self._memory}. Fewer workers "
                f"(data.workers) or less prefetching (data.prefetch_gib) need less memory.  [{e}]"
            ) from None

    def _prefetch(self) -> int:
        """Micro-batches that each worker may have ready: as many of the largest as the bytes allow."""
        r = self._rendering
        tiles = r.budget.images or r.budget.tokens // r.image_tokens
        patches = r.budget.patches or tiles * r.image.largest_grid**2
        largest = self._micro_rows * (5 * 8 * r.budget.tokens + patches * (3 * r.image.patch**2 + 24))
        return max(1, min(_PREFETCHED, self._prefetch_bytes // (self._workers * largest)))

    def _left_out(self, plan: Plan) -> Iterator[Fault]:
        """What the plan could make nothing of, named once: by rank 0, as all ranks see the same."""
        for source, index, reason in plan.skipped if self._rank == 0 else ():
            if reason not in NOTES:
                shard, row = self.sources[source].place(index)
                name = self._name(source, index)
                yield Fault(sample_id=name, source=source, shard=shard, row=row, reason=reason)

    def _name(self, source: str, index: int) -> str | None:
        try:
            return self.sources[source].head(index).id
        except BrokenSample:
            return None

    def _judge(self, met: list[Fault | None]) -> None:
        """Count what was met, and write down what was bad. Raises DataError where it is too much."""
        self._write(fault for fault in met if fault)
        for fault in met:
            if fault is None:
                self._faults.good()
            else:
                self.skipped[fault.reason] += 1
                self._faults.bad(fault.sample_id, fault.reason, fault.where)

    def _write(self, faults: Iterable[Fault]) -> None:
        if self._skipped_file and (lines := list(faults)):
            self._skipped_file.parent.mkdir(parents=True, exist_ok=True)
            append_faults(self._skipped_file, lines, step=self.step + 1)


def _imbalance(step: _Step) -> tuple[float, float]:
    """(tokens, patches) of the heaviest rank over the mean."""
    by_rank = step.ranks.reshape(len(step.ranks), -1)
    of_ranks = (cost[by_rank].sum(axis=1) for cost in (step.plan.rows.tokens, step.plan.rows.patches))
    tokens, patches = (float(c.max() / c.mean()) if c.any() else 1.0 for c in of_ranks)
    return tokens, patches


def _as_it_is(item: T) -> T:
    return item
