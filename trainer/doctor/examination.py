"""One rank's examination, and rank 0's report of all of them: never longer than it was given.

The checks run in a thread, one after another; when time is up, the one that hangs is what is reported. Ranks
tell one another what they found by notes, which need no collective and no shared directory to work.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.errors import ConfigError, TransientError
from trainer.board import Board, keeps_store, unreached
from trainer.config import Recipe, load_recipe
from trainer.distributed import init_world
from trainer.doctor import collectives, devices, disk, host, slurm, software, storage
from trainer.doctor.crew import Crew, addresses, names, port_free, same_everywhere, who_came
from trainer.doctor.finding import Check, Finding, found_by
from trainer.doctor.report import Report, joined
from trainer.doctor.storage import Shared

_LAST_WORD_S = 5.0
"""So long, or a quarter of the time, rank 0 waits for notes of others beyond the end: they began later."""

_COLLECTIVE_S = 20.0


RecipeChecks = Callable[[Recipe, Path, int, float], Iterator[tuple[str, Check]]]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be examined. `seconds`: for all of it; a sixth of them a file may take to appear on another
    node."""

    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    run: Path = Path()
    seconds: float = 60.0


@dataclass(kw_only=True)
class Examination:
    """Of this process, which is `rank` of `size`. `of_recipe`: `checks` of `recipe.py`, given to rank 0."""

    order: Order
    of_recipe: RecipeChecks | None = None
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    findings: list[Finding] = field(default_factory=list)
    doing: str = "start"
    began: float = field(default_factory=time.monotonic)
    crew: Crew | None = None
    _board: Board | None = None
    _recipe: Recipe | None = None
    _facts: dict[int, dict[str, str]] = field(default_factory=dict)

    @property
    def end(self) -> float:
        """Of all checks, in time.monotonic()."""
        return self.began + self.order.seconds

    @property
    def _patience(self) -> float:
        return min(_LAST_WORD_S, self.order.seconds / 4)

    def take(self) -> Report | None:
        """All checks, in a thread that may be left behind; the report on rank 0, None on others (all ranks).

        Raises TransientError where this rank cannot tell rank 0 what it found.
        """
        thread = threading.Thread(target=self._checks, name="doctor", daemon=True)
        thread.start()
        thread.join(self.order.seconds)
        found = list(self.findings)  # what the thread finds later, if it does, is too late
        if not thread.is_alive() and self.doing:
            found.append(
                Finding(
                    self.doing,
                    "fail",
                    "an error of Fovea's own ended it, and all that comes after it; see above",
                    "report it, with what stands above",
                )
            )
        elif self.doing:
            found.append(
                Finding(
                    self.doing,
                    "fail",
                    f"not done after {self.order.seconds:.0f} s; what comes after it was not looked at",
                    "look there first, for a mount, node or name server that hangs; or take more --seconds",
                )
            )
        if self.rank == 0:
            return self._report(found)
        if self._board is None:
            raise unreached(self.rank)
        self._board.post("found", [asdict(f) for f in found])
        return None

    def _checks(self) -> None:
        for name, check in self._listed():
            self.doing = name
            self.findings.extend(found_by(name, check))
        self.doing = ""

    def _listed(self) -> Iterator[tuple[str, Check]]:
        """Each check is made when the one before has ended: later ones use what earlier ones learned."""
        yield "recipe", self._read_recipe
        if self.size > 1:
            yield "ranks", self._announce
            if self._board is None:
                return  # nobody to meet, and rank 0 says so
        yield "python", software.python
        yield "packages", software.packages
        yield "torch", software.torch_build
        yield "deepspeed", software.deepspeed_operators
        if self.size > 1:
            yield "ranks", self._meet
        else:
            self.crew = Crew(0, 1, {0: socket.gethostname()}, storage.new_token())
            said = "one alone: --nproc N, or srun, tries several together"
            yield "ranks", lambda: Finding("ranks", "skipped", said)
        if self.crew is not None:
            yield from self._of_host(self.crew)
            yield from self._together(self.crew)
            yield "run directory", partial(self._storage, self.crew)
            if self.rank == 0:
                yield from self._of_main()

    def _of_host(self, crew: Crew) -> Iterator[tuple[str, Check]]:
        recipe = self._recipe
        yield "gpu", lambda: devices.gpus(self.local_rank, crew.here, _gpu_needed(recipe))
        yield "cores", lambda: host.cores(recipe, crew.here)
        yield "shared memory", lambda: host.shared_memory(recipe, crew.here)
        yield "open files", lambda: host.open_files(recipe, crew.ranks)
        yield "locked memory", host.locked_memory
        yield "scratch", host.scratch

    def _together(self, crew: Crew) -> Iterator[tuple[str, Check]]:
        board = self._board
        if board is None:
            return
        if crew.is_main:
            yield "same everywhere", lambda: same_everywhere(self._facts, crew.hosts)
        yield "names", partial(self._names, crew, board)
        if not crew.all_came:
            return
        yield "all-reduce", partial(self._collectives, crew)

    def _of_main(self) -> Iterator[tuple[str, Check]]:
        recipe, run = self._recipe, self.order.run
        yield "slurm", lambda: slurm.job_and_cluster(recipe, run)
        if recipe is None or self.of_recipe is None:
            yield "disk", lambda: disk.free_space(run, None)
        else:
            yield from self.of_recipe(recipe, run, self.size, self.end - self.order.seconds / 4)

    def _read_recipe(self) -> Finding:
        if self.order.recipe is None:
            return Finding("recipe", "skipped", "none is named: fovea doctor RECIPE looks at what it needs")
        self._recipe = load_recipe(self.order.recipe, list(self.order.overrides))
        return Finding(
            "recipe", "ok", f"{self._recipe.name}: {', '.join(s.name for s in self._recipe.stages)}"
        )

    def _announce(self) -> list[Finding]:
        """Tell the others that this rank is here, and what it runs."""
        found = []
        if self.rank == 0 and keeps_store():
            found.append(port_free(int(os.environ["MASTER_PORT"])))
            if found[0].status == "fail":
                return found
        self._board = Board(self.rank, self.size, self.order.seconds / 2)
        facts = software.facts(self._recipe) | devices.facts()
        self._board.post("here", {"host": socket.gethostname(), "facts": facts})
        return found

    def _meet(self) -> list[Finding]:
        """Rank 0 waits for half of the time, and tells those that came who did."""
        assert self._board is not None
        until = self.began + self.order.seconds / 2
        if self.rank == 0:
            here = self._board.read("here", range(self.size), until)
            hosts = {r: h["host"] for r, h in here.items()}
            self._facts = {r: h["facts"] for r, h in here.items()}
            self._board.post("crew", {"hosts": list(hosts.items()), "token": storage.new_token()})
        told = self._board.read("crew", [0], until + self._patience)
        if not told:
            raise TransientError(f"rank {self.rank}: rank 0 does not say who came")
        hosts = dict(map(tuple, told[0]["hosts"]))
        if self.rank not in hosts:
            raise TransientError(f"rank {self.rank} came too late: the others have begun without it")
        self.crew = Crew(self.rank, self.size, hosts, told[0]["token"])
        if self.rank:
            return []
        waited = time.monotonic() - self.began
        return [who_came(self.crew, waited, slurm.nodes_of_step(os.environ))]

    def _collectives(self, crew: Crew) -> Iterator[Finding]:
        """All of them, one after another (all ranks): after one that breaks, no other is tried."""
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # else a lost rank ends this process too
        world = init_world(max(1.0, min(_COLLECTIVE_S, (self.end - time.monotonic()) / 2)))
        yield from collectives.clocks(world, crew)
        yield from collectives.sums(world, crew)
        yield from collectives.links(world, crew)

    def _names(self, crew: Crew, board: Board) -> list[Finding]:
        if crew.rank in crew.first_of_nodes:  # the others of a node ask the same name server
            board.post("addresses", addresses(crew.nodes))
        if not crew.is_main:
            return []
        return list(names(board.read("addresses", crew.first_of_nodes, self.end - 1), crew))

    def _storage(self, crew: Crew) -> Iterator[Finding]:
        run = self.order.run
        place = storage.probe_of(run, crew.token)
        until = self.end - min(2.0, self.order.seconds / 8)
        shared = Shared(place, crew, self._board, until, self.order.seconds / 6)
        return storage.run_directory(shared, run)

    def _report(self, ours: list[Finding]) -> Report:
        """What all that came found, and which of them say nothing (rank 0)."""
        hosts: Mapping[int, str] = self.crew.hosts if self.crew else {0: socket.gethostname()}
        found = {0: ours}
        others = [r for r in hosts if r]
        if self._board is not None and others:
            told = self._board.read("found", others, self.end + self._patience)
            found |= {r: [_finding(f) for f in page] for r, page in told.items()}
            if silent := [r for r in others if r not in told]:
                assert self.crew is not None
                found[0] = [*ours, _silent(self.crew, silent)]
        seconds = time.monotonic() - self.began
        return Report(len(hosts), tuple(dict.fromkeys(hosts.values())), seconds, joined(found, hosts))


def _silent(crew: Crew, ranks: list[int]) -> Finding:
    return Finding(
        "ranks",
        "fail",
        f"{crew.named(ranks)} came, and then said no more",
        "look at what those tasks wrote, and at their nodes (dmesg, sinfo -R)",
        where=tuple(dict.fromkeys(crew.hosts[r] for r in ranks)),
    )


def _finding(page: dict[str, Any]) -> Finding:
    return Finding(**{**page, "where": tuple(page["where"])})


def _gpu_needed(recipe: Recipe | None) -> str:
    try:
        return devices.needs_gpu(recipe) if recipe else ""
    except ConfigError:
        return ""  # the check of the stages says what is wrong
