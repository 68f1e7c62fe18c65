"""The helper that starts ranks: results of all, the failure of one, none left behind."""

import os
import time
from pathlib import Path

import pytest
import torch

from ranks import on_ranks
from trainer.distributed import World, all_sum


def add(world: World, more: float) -> tuple[int, int, float, int]:
    return world.rank, world.size, all_sum(world, world.rank + more)[0], torch.get_num_threads()


def fail_on_one(world: World, room: Path) -> None:
    """Rank 1 fails; rank 0 would wait for it in a collective."""
    (room / f"pid{world.rank}").write_text(str(os.getpid()))
    all_sum(world, 0)
    if world.rank:
        raise ValueError("rank one is lost")
    time.sleep(600)


def sleep(world: World, room: Path) -> None:
    (room / f"pid{world.rank}").write_text(str(os.getpid()))
    time.sleep(600)


def left(room: Path) -> list[int]:
    pids = [int(f.read_text()) for f in room.glob("pid*")]
    assert pids
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_each_rank_runs_the_function_with_one_thread_and_gives_its_result():
    assert on_ranks(add, 10, ranks=2) == [(0, 2, 21.0, 1), (1, 2, 21.0, 1)]


def test_one_failing_rank_ends_the_others_and_says_why(tmp_path):
    began = time.monotonic()
    with pytest.raises(AssertionError, match="rank one is lost"):
        on_ranks(fail_on_one, tmp_path)
    assert time.monotonic() - began < 60
    assert not left(tmp_path)


def test_ranks_that_take_too_long_are_ended(tmp_path):
    with pytest.raises(AssertionError, match="out of time"):
        on_ranks(sleep, tmp_path, seconds=10)
    assert not left(tmp_path)
