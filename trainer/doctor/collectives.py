"""What ranks do together: their sums, the bandwidth of all and of each link, their clocks."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import torch

from trainer.distributed import World, all_reduced, barrier, exchanged, gathered
from trainer.doctor.crew import Crew
from trainer.doctor.finding import Finding, gib

SIZE = 64 * 2**20
"""Bytes of the tensor that all ranks sum: about a bucket of gradients."""

_LINK = 16 * 2**20
_ROUNDS = 3
_SLOW = 1 / 3
"""A link or rank is slow below this share of the median: noise of a busy machine stays above."""

_FLOOR_NCCL = 5e9
"""Bytes/s of bus bandwidth between nodes below which NCCL hardly goes over InfiniBand or RoCE."""

_CLOCKS_S = 1.0


def sums(world: World, crew: Crew, nbytes: int = SIZE) -> Iterator[Finding]:
    """An all-reduce over all ranks (all ranks): the sum is right, and how fast it is; rank 0 says so."""
    n, elements = world.size, nbytes // 4
    # Whole numbers, and so are their sums, which float32 holds exactly for up to 4,000 ranks.
    whole = (torch.arange(elements, device=world.device) % 1021).float()
    expected = whole * n + n * (n - 1) // 2
    seconds, wrong = float("inf"), 0
    for _ in range(_ROUNDS + 1):  # the first one connects
        given = whole + world.rank
        barrier(world)
        seconds = min(seconds, all_reduced(world, given))
        wrong += int((given != expected).sum())
    told = gathered(world, (seconds, wrong))
    if not world.is_main:
        return
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    bad = [r for r, (_, w) in enumerate(told) if w]
    if bad:
        yield Finding(
            "all-reduce",
            "fail",
            f"wrong sums on {crew.named(bad)}",
            "do not train on these nodes; run with one node less at a time to find which, and drain it",
            where=tuple(dict.fromkeys(crew.hosts[r] for r in bad)),
        )
        return
    # As nccl-tests count it, so that figures compare whatever the number of ranks.
    speed = 2 * (n - 1) / n * nbytes / max(s for s, _ in told)
    said = f"{gib(nbytes)} by {backend}: sums right, bus bandwidth {speed / 1e9:.3g} GB/s a rank"
    if backend == "nccl" and len(crew.nodes) > 1 and speed < _FLOOR_NCCL:
        yield Finding(
            "all-reduce",
            "warn",
            f"{said}: below what InfiniBand or RoCE give",
            "NCCL_DEBUG=INFO says which network it takes; name it in slurm/env.sh (NCCL_IB_HCA, "
            "NCCL_SOCKET_IFNAME)",
            where=crew.nodes,
        )
    else:
        yield Finding("all-reduce", "ok", said, where=crew.nodes)


def links(world: World, crew: Crew, nbytes: int = _LINK) -> Iterator[Finding]:
    """Each rank with the next one of the ring, no rank with two at a time (all ranks); rank 0 says which link
    is slow."""
    n = world.size
    best: dict[int, float] = {}
    for turn in range(1 if n == 2 else 2 + n % 2):
        # Links are numbered by the lower rank; the last one of an odd ring has a turn of its own.
        mine = [a for a in _links_of(n, turn) if world.rank in (a, (a + 1) % n)]
        for _ in range(_ROUNDS):
            barrier(world)
            for a in mine:
                other = (a + 1) % n if world.rank == a else a
                best[a] = min(best.get(a, float("inf")), exchanged(world, other, nbytes))
    told = gathered(world, best)
    if world.is_main:
        slowest: dict[int, float] = {}
        for a, seconds in (item for of_rank in told for item in of_rank.items()):
            slowest[a] = max(slowest.get(a, 0.0), seconds)
        yield from judge_links({a: nbytes / s for a, s in slowest.items()}, crew)


def judge_links(speeds: Mapping[int, float], crew: Crew) -> Iterator[Finding]:
    """`speeds`: bytes/s each way between rank a and the next one, by a. Those inside of nodes and those
    between nodes are compared among themselves."""
    within = {a for a in speeds if crew.hosts[a] == crew.hosts[(a + 1) % crew.ranks]}
    kinds = {"links inside nodes": within, "links between nodes": speeds.keys() - within}
    for name, those in ((k, {a: speeds[a] for a in v}) for k, v in kinds.items() if v):
        usual = statistics.median(those.values())
        slow = [a for a, s in those.items() if s < _SLOW * usual]
        least = min(those, key=lambda a: those[a])
        said = f"{crew.named((least, (least + 1) % crew.ranks))}: {those[least] / 1e9:.3g} GB/s each way"
        if len(those) > 1:
            said = f"slowest of {len(those)}: {said}; median {usual / 1e9:.3g}"
        if not slow:
            yield Finding(name, "ok", said, where=crew.nodes)
            continue
        touched = Counter(crew.hosts[r] for a in slow for r in (a, (a + 1) % crew.ranks))
        most = max(touched.values())
        yield Finding(
            name,
            "warn",
            f"{len(slow)} slow; {said}",
            "every step waits for the slowest link: leave the node out (sbatch --exclude), and have its "
            "cables and ports looked at (ibstat)",
            where=tuple(host for host, n in touched.items() if n == most),
        )


def clocks(world: World, crew: Crew, clock: Callable[[], float] = time.time) -> Iterator[Finding]:
    """The clock of each rank against rank 0's (all ranks).

    What a rank reads between a barrier and a gather, another reads neither before it entered the barrier nor
    after it left the gather: so its offset lies in an interval, and several tries narrow it.
    """
    low, high = [float("-inf")] * world.size, [float("inf")] * world.size
    for _ in range(_ROUNDS):
        before = clock()
        barrier(world)
        stamps = gathered(world, clock())
        after = clock()
        low = [max(a, s - after) for a, s in zip(low, stamps, strict=True)]
        high = [min(b, s - before) for b, s in zip(high, stamps, strict=True)]
    if not world.is_main:
        return
    off = {r: (a + b) / 2 for r, (a, b) in enumerate(zip(low, high, strict=True)) if r}
    wrong = {r: s for r, s in off.items() if abs(s) > _CLOCKS_S}
    if wrong:
        told = ", ".join(f"rank {r} ({crew.hosts[r]}) by {s:+.1f} s" for r, s in list(wrong.items())[:4])
        yield Finding(
            "clocks",
            "warn",
            f"off from rank 0's: {told}",
            "start chrony or ntpd there (chronyc tracking): logs of nodes do not line up, and ends of jobs "
            "are told wrong",
            where=tuple(dict.fromkeys(crew.hosts[r] for r in wrong)),
        )
    else:
        widest = max((abs(s) for s in off.values()), default=0.0)
        width = max((b - a) / 2 for a, b in zip(low, high, strict=True))
        said = f"within {widest + width:.3f} s of rank 0's"
        yield Finding("clocks", "ok", said, where=crew.nodes)


def _links_of(ranks: int, turn: int) -> range | tuple[int]:
    """The links of a turn, by their lower rank: even, odd, and of an odd ring the one that closes it."""
    if turn == 2:
        return (ranks - 1,)
    return range(turn, ranks - ranks % 2, 2)
