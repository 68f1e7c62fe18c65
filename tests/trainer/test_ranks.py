"""The helper that starts ranks: results of all, the failure of one, none left behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from ranks import on_ranks
from trainer.distributed import World, all_sum
from waiting import wait_for


def add(world: World, more: float) -> tuple[int, int, float, int]:
    return world.rank, world.size, all_sum(world, world.rank + more)[0], torch.get_num_threads()


def note_pid(world: World, room: Path) -> None:
    """As a whole: others look for the file, and read it."""
    file = room / f"unwritten_{world.rank}"
    file.write_text(str(os.getpid()))
    file.rename(room / f"pid{world.rank}")


def fail_on_one(world: World, room: Path) -> None:
    """Rank 1 fails; rank 0 would wait for it in a collective."""
    note_pid(world, room)
    all_sum(world, 0)
    if world.rank:
        raise ValueError("rank one is lost")
    time.sleep(3600)


def sleep(world: World, room: Path) -> None:
    note_pid(world, room)
    time.sleep(600)


def left(room: Path) -> list[int]:
    """Those that still run; one that ended may wait to be reaped."""
    pids = [int(f.read_text()) for f in room.glob("pid*")]
    return [pid for pid in pids if runs(pid)]


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_each_rank_runs_the_function_with_one_thread_and_gives_its_result():
    assert on_ranks(add, 10, ranks=2) == [(0, 2, 21.0, 1), (1, 2, 21.0, 1)]


def test_one_failing_rank_ends_the_others_and_says_why(tmp_path):
    began = time.monotonic()
    with pytest.raises(AssertionError, match="rank one is lost"):
        on_ranks(fail_on_one, tmp_path, seconds=600)
    assert time.monotonic() - began < 500
    assert not left(tmp_path)


def test_ranks_that_take_too_long_are_ended(tmp_path):
    with pytest.raises(AssertionError, match="out of time"):
        on_ranks(sleep, tmp_path, seconds=10)
    assert not left(tmp_path)


def test_ranks_end_with_the_process_that_started_them(tmp_path):
    call = f"on_ranks(test_ranks.sleep, pathlib.Path({str(tmp_path)!r}), seconds=300)"
    code = (
        f"import pathlib, sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}; import test_ranks"
    )
    process = subprocess.Popen([sys.executable, "-c", f"{code}; from ranks import on_ranks; {call}"])
    wait_for(lambda: len(list(tmp_path.glob("pid*"))) == 2)
    process.kill()
    process.wait()
    wait_for(lambda: not left(tmp_path))


def test_a_rank_and_a_script_start_no_ranks(monkeypatch):
    monkeypatch.setattr(add, "__module__", "__main__")
    with pytest.raises(AssertionError, match="of a module"):
        on_ranks(add, 1)
    monkeypatch.undo()
    monkeypatch.setenv("FOVEA_TEST_SECONDS", "1")
    with pytest.raises(AssertionError, match="a rank starts no ranks"):
        on_ranks(add, 1)
