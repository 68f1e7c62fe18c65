"""Processes that are watched, and hang or die: who is named, what is left on disk, and that all end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from trainer.engine.positions import ENDED, FAILED, Marker, Position, page_of
from trainer.engine.watchdog import Limits, Watchdog, judge, sentence
from waiting import wait_for

SCRIPT = Path(__file__).parents[1] / "processes" / "watched.py"
FLOOR_S = 2.0
"""The limit of the script's third step, the first one with a limit that was learnt."""


@contextmanager
def watched(stage, *what, floor_s=FLOOR_S):
    """Ranks without a launcher in one process group, one for each `what`; nothing is left of them."""
    processes = []
    for rank, w in enumerate(what):
        command = [sys.executable, SCRIPT, stage, str(rank), str(len(what)), w, str(floor_s)]
        group = processes[0].pid if processes else 0
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, process_group=group))
    try:
        yield processes
    finally:
        for p in processes:
            p.kill()
            p.communicate()


def events(stage):
    return [json.loads(line) for line in (stage / "events.jsonl").read_text().splitlines()]


def stacks(stage, step=3):
    return {p.name: p.read_text() for p in (stage / "stacks" / f"step_{step}").iterdir()}


def at(rank, entered=5, moved=0, waiting=False, **more):
    more = {"limit_s": 10.0, **more}
    return Position(rank=rank, entered=entered, moved=moved, waiting=waiting, **more)


@pytest.mark.parametrize(
    ("what", "state"),
    [
        ("stop", ", stopped (state T);"),
        ("gil", ";"),
        pytest.param("hang", ";", marks=pytest.mark.slow),
        pytest.param("kill", ", its process is gone;", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_hangs_is_named_and_ends_the_others_with_every_stack_on_disk(tmp_path, what, state):
    stale = tmp_path / "stacks" / "step_3" / "rank_1.txt"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an earlier attempt")
    limit = 40 if what == "kill" else FLOOR_S  # nobody waits for a process that is gone
    with watched(tmp_path, "none", what, "none", floor_s=limit) as processes:
        said = [processes[r].communicate(timeout=300)[1] for r in (0, 2)]
        assert [processes[r].returncode for r in (0, 2)] == [75, 75], said
        hung = processes[1].wait(timeout=300) if what in ("hang", "kill") else processes[1].poll()
    assert hung in {"kill": (-9,), "hang": (75,), "stop": (None,), "gil": (None, 75)}[what]
    lines = [line for text in said for line in text.splitlines()]
    if what != "hang":  # it may be the one that says so
        assert sum("stood still in" in line for line in lines) == 1
    (event,) = events(tmp_path)
    assert {k: event[k] for k in ("event", "rank", "phase", "module", "step")} == {
        "event": "hang", "rank": 1, "phase": "forward", "module": "language.layers.1", "step": 3,
    }  # fmt: skip
    assert event["samples"] == ["sample-1-3-0", "sample-1-3-1", "sample-1-3-2"]
    assert f"rank 1 on {event['host']} stood still in forward (language.layers.1) of step 3" in event["line"]
    assert state in event["line"]
    stood = int(re.search(rf" for (\d+) s \(limit {limit:.0f} s\)", event["line"])[1])
    assert (stood < limit) == (what == "kill")
    assert str(tmp_path / "stacks" / "step_3") in event["line"]
    left = stacks(tmp_path)
    assert "of an earlier attempt" not in left["rank_1.txt"]
    assert sorted(left) == ["rank_0.txt", "rank_1.txt", "rank_2.txt"]
    for rank in (0, 2):
        assert f"rank {rank} on {event['host']}: communication of step 3" in left[f"rank_{rank}.txt"]
        assert "in meet" in left[f"rank_{rank}.txt"]
    if what in ("gil", "hang"):
        assert "in suffer" in left["rank_1.txt"]
    else:
        assert state.strip(" ,;") in left["rank_1.txt"]


def test_a_rank_that_never_came_is_named(tmp_path):
    with watched(tmp_path, "none", "late") as processes:
        said = processes[0].communicate(timeout=300)[1]
    assert processes[0].returncode == 75, said
    assert "rank 1 on an unknown host stood still in setup" in said


@pytest.mark.slow
def test_ranks_that_are_slow_but_within_the_limit_are_left_alone(tmp_path):
    with watched(tmp_path, "none", "slowly", floor_s=6) as processes:
        assert [p.wait(timeout=300) for p in processes] == [0, 0]
    assert not (tmp_path / "events.jsonl").exists()


@pytest.mark.slow
def test_a_job_that_was_suspended_as_a_whole_goes_on(tmp_path):
    with watched(tmp_path, "slowly", "slowly") as processes:
        wait_for((tmp_path / "met_3_0").exists)
        os.killpg(processes[0].pid, signal.SIGSTOP)
        time.sleep(3 * FLOOR_S)
        os.killpg(processes[0].pid, signal.SIGCONT)
        assert [p.wait(timeout=300) for p in processes] == [0, 0]
    assert not (tmp_path / "events.jsonl").exists()


def test_the_rank_that_is_behind_is_judged_by_its_own_limit():
    behind, waits = at(1, entered=4, limit_s=100.0), at(0, entered=5, waiting=True, limit_s=1.0)
    assert judge([waits, behind], {0: 99.0, 1: 99.0}) == ()
    assert judge([waits, behind], {0: 0.0, 1: 101.0}) == (behind,)


def test_of_ranks_at_one_place_the_one_outside_of_the_collective_is_named():
    inside, outside = at(0, moved=7, waiting=True), at(1, moved=7)
    assert judge([inside, outside], {0: 11.0, 1: 11.0}) == (outside,)
    assert judge([at(0, moved=8), at(1, moved=7, waiting=True)], {0: 11.0, 1: 11.0})[0].rank == 1


def test_ranks_that_all_wait_in_one_collective_are_named_together(tmp_path):
    both = [at(r, waiting=True, phase="update", step=4, host="a", module="") for r in (0, 1)]
    assert judge(both, {0: 11.0, 1: 9.0}) == ()
    line = sentence(judge(both, {0: 11.0, 1: 11.0}), 2, 11.0, tmp_path)
    assert line.startswith("all ranks on a stood still in update of step 4 for 11 s")
    assert "wait for it" not in line


def test_of_ranks_in_one_collective_the_one_that_was_stopped_is_named():
    with subprocess.Popen(["sleep", "600"]) as process:
        process.send_signal(signal.SIGSTOP)
        of = {
            "host": socket.gethostname(),
            "pid": process.pid,
            "began": psutil.Process(process.pid).create_time(),
        }
        both = [at(0, waiting=True), at(1, waiting=True, **of)]
        wait_for(lambda: both[1].state)
        found = judge(both, {0: 11.0, 1: 11.0})
        process.kill()
    assert [p.rank for p in found] == [1]


def test_nobody_waits_for_a_rank_that_has_ended_and_all_for_one_that_failed(tmp_path):
    mark = Marker(tmp_path, 0, 1, 10.0)
    for phase, first in ((ENDED, 1), (FAILED, 0)):
        mark.end(phase, 10.0)
        other = at(1, entered=10**6)
        (behind,) = judge([Position.read(page_of(tmp_path, 0)), other], {0: 99.0, 1: 99.0})
        assert behind.rank == first


def test_a_limit_is_learnt_from_the_longest_but_the_first():
    limits = Limits(Watchdog(factor=3, floor_s=10, first_s=100))
    assert limits.of("forward") == 100
    limits.ended("forward", 90)  # compiled
    assert limits.of("forward") == 100
    limits.ended("forward", 1)
    assert limits.of("forward") == 10
    limits.ended("forward", 7)
    limits.ended("forward", 2)
    assert limits.of("forward") == 21
    limits.ended("forward", 200)
    assert (limits.of("forward"), limits.of("data"), limits.of("setup")) == (300, 100, 300)


def test_a_position_is_read_as_it_was_written_however_many_samples_it_has(tmp_path):
    mark = Marker(tmp_path, 2, 9, 5.0)
    mark.enter("forward", 7, 3.5)
    mark.move(b"vision")
    mark.wait(True)
    mark.hold(["ü" * 900, "b" * 900, "c" * 900], 4)
    found = Position.read(page_of(tmp_path, 2))
    assert (found.order, found.phase, found.module, found.step) == ((2, 1, True), "forward", "vision", 7)
    assert (found.pid, found.attempt, found.limit_s) == (os.getpid(), 9, 3.5)
    assert (found.samples, found.samples_left_out) == ((), 7)
    mark.hold(["a", "b"], 0)
    assert Position.read(page_of(tmp_path, 2)).samples == ("a", "b")
    assert not found.is_gone
    assert Position.read(tmp_path / "none") is None
    (tmp_path / "short").write_bytes(b"x")
    assert Position.read(tmp_path / "short") is None


def test_the_time_out_of_collectives_is_later_than_any_limit():
    policy = Watchdog()
    assert policy.collective_s > policy.longest_s + policy.floor_s
    assert Watchdog(enabled=False).collective_s == 600


def test_a_process_with_a_number_that_was_given_again_is_no_rank(tmp_path):
    me = psutil.Process()
    Marker(tmp_path, 0, 1, 5.0)
    mine = Position.read(page_of(tmp_path, 0))
    assert mine.began == pytest.approx(me.create_time())
    assert not mine.is_gone
    assert Position(**{**vars(mine), "began": mine.began - 60}).is_gone
