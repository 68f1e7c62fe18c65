"""Ranks and collectives. Nothing else calls torch.distributed, but for the store of `board.py`.

Every function below that names "all ranks" is a collective: each rank must reach it, in the same order.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from data_pipeline.errors import TransientError


@dataclass(frozen=True)
class World:
    """Where this process stands among the ranks."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def init_world(timeout_s: float = 600.0, meet_s: float | None = None) -> World:
    """Join the ranks that the environment describes (all ranks); alone where it describes none.

    Collectives break after `timeout_s`. `meet_s`: so long ranks may wait for one another here (the same).
    """
    rank = int(os.environ.get("RANK", 0))
    size = int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank)
    for key, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        os.environ.setdefault(key, value)
    if not dist.is_initialized():
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=meet_s or timeout_s),
        )
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s))
    return World(rank, size, torch.device("cuda", local_rank) if on_gpu else torch.device("cpu"))


def alone() -> World:
    """This process by itself: no other rank, and no port on which one could come."""
    on_gpu = torch.cuda.is_available()
    return World(0, 1, torch.device("cuda", 0) if on_gpu else torch.device("cpu"))


def all_sum(world: World, *values: float) -> list[float]:
    """Each value summed over all ranks, in double precision."""
    tensor = torch.tensor(values, dtype=torch.float64, device=world.device)
    if world.size > 1:
        dist.all_reduce(tensor)
    return tensor.tolist()


def all_sum_exactly(world: World, values: Sequence[int]) -> list[int]:
    """Each whole number summed over all ranks, modulo 2^64."""
    signed = [(v + 2**63) % 2**64 - 2**63 for v in values]
    tensor = torch.tensor(signed, dtype=torch.int64, device=world.device)
    if world.size > 1:
        dist.all_reduce(tensor)
    return [v % 2**64 for v in tensor.tolist()]


@contextmanager
def noting_waits(note: Callable[[bool], None]) -> Iterator[None]:
    """`note(True)` before and `note(False)` after each time that this thread waits for a collective: those of
    DeepSpeed too, which no argument of ours reaches. Under NCCL only the host's own waiting counts."""
    wait, here = dist.Work.wait, threading.get_ident()

    def noted(work: dist.Work, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != here:
            return wait(work, *args, **kwargs)
        note(True)
        try:
            return wait(work, *args, **kwargs)
        finally:
            note(False)

    dist.Work.wait = noted  # type: ignore[method-assign, assignment]  # on purpose, and taken back
    try:
        yield
    finally:
        dist.Work.wait = wait  # type: ignore[method-assign]


@contextmanager
def lost_peers_are_transient(world: World) -> Iterator[None]:
    """A collective that breaks because another rank died is that rank's fault, not this one's."""
    try:
        yield
    except RuntimeError as e:
        if world.size == 1 or not any(sign in str(e) for sign in _LOST_PEER):
            raise
        raise TransientError(f"rank {world.rank} lost its connection to another rank, and stopped.") from None


_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL error: remote")


def broadcast(world: World, tensor: torch.Tensor) -> None:
    """Rank 0's values, in place (all ranks)."""
    if world.size > 1:
        there = tensor.to(world.device)
        dist.broadcast(there, 0)
        tensor.copy_(there)


def from_main(world: World, value: Any) -> Any:
    """What rank 0 gives, on all ranks."""
    held = [value]
    if world.size > 1:
        dist.broadcast_object_list(held, 0, device=world.device)
    return held[0]


def gathered(world: World, value: Any) -> list[Any]:
    """What each rank gives, in their order (all ranks)."""
    held = [value] * world.size
    if world.size > 1:
        dist.all_gather_object(held, value)
    return held


def all_reduced(world: World, tensor: torch.Tensor) -> float:
    """Sum the tensor over all ranks, in place; the seconds that it took."""
    with _timed(world) as took:
        dist.all_reduce(tensor)
    return took()


def exchanged(world: World, other: int, nbytes: int) -> float:
    """Send so much to rank `other` and get as much from it at once (both ranks); the seconds that it took."""
    ours = torch.zeros(nbytes, dtype=torch.uint8, device=world.device)
    theirs = torch.empty_like(ours)
    with _timed(world) as took:
        both = [dist.P2POp(dist.isend, ours, other), dist.P2POp(dist.irecv, theirs, other)]
        for work in dist.batch_isend_irecv(both):
            work.wait()
    return took()


@contextmanager
def _timed(world: World) -> Iterator[Callable[[], float]]:
    """Seconds inside, with what a GPU was given to do there."""

    def now() -> float:
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        return time.perf_counter()

    began = now()
    ended = began
    yield lambda: ended - began
    ended = now()


def barrier(world: World) -> None:
    """Wait for all ranks."""
    if world.size > 1:
        dist.barrier()


def close_world() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def end_rank() -> NoReturn:
    """End this process, a rank whose work is done and saved, with code 0 (all ranks).

    Not by way of the interpreter's end: a native thread of some library that still stands there aborts the
    process now and then, and the launcher would take a finished run for a failed one.
    """
    close_world()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
