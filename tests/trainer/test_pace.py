"""Where a rank's time goes, and which rank is called slow."""

import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from ranks import on_ranks
from trainer.distributed import noting_waits
from trainer.engine import pace
from trainer.engine.pace import OWN, Pace, straggler
from waiting import wait_for

PAUSE_S = 0.3


def noted(world, room):
    """Seconds that this rank waited, by a collective of each kind; rank 1 comes to each once rank 0 waits.
    Its clock goes on between them alone."""
    seconds, slept = [], [0.0]
    if world.rank:
        pace.time = SimpleNamespace(perf_counter=lambda: slept[0])
    mine = Pace()

    def note(waiting):
        mine.wait(waiting)
        if waiting and world.is_main:
            (room / f"waits_{len(seconds)}").touch()

    mine.enter("forward")
    tensor = torch.ones(2)
    with noting_waits(note):
        for collective in (
            lambda: dist.all_reduce(tensor),
            dist.barrier,
            lambda: dist.all_gather_into_tensor(torch.empty(4), tensor, async_op=True).wait(),
        ):
            if world.rank:
                wait_for((room / f"waits_{len(seconds)}").exists)
                time.sleep(PAUSE_S)
                slept[0] += PAUSE_S
            collective()
            seconds.append(mine.waits()[1])
    dist.barrier()
    return [*seconds, mine.waits()[1]]


def test_a_rank_notes_its_waits_for_collectives_of_every_kind_and_none_outside(tmp_path):
    early, late = on_ranks(noted, tmp_path)
    assert all(s >= PAUSE_S for s in early[:3])
    assert late == [0, 0, 0, 0]
    assert early[3] == 0


def test_what_a_rank_waits_for_others_is_no_work_of_its_own(monkeypatch):
    now = 100.0
    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: now))
    mine = Pace()
    mine.enter("data")
    now += 5
    mine.enter("communication")
    now += 6
    mine.enter("forward")
    now += 7
    mine.wait(True)
    now += 20
    mine.wait(False)
    assert mine.worked_s == 12
    assert mine.waits() == (5, 26)
    assert mine.waits() == (0, 0)
    mine.enter("checkpoint")
    now += 10
    mine.enter("data")
    assert mine.worked_s == 0
    assert dict(zip(OWN, mine.own(), strict=True)) == {"data": 5, "forward and backward": 7, "update": 0}
    mine.enter("update")
    now += 3
    assert mine.own() == [0, 0, 3]


@pytest.mark.parametrize("cause", range(len(OWN)))
def test_the_slowest_rank_is_named_with_what_it_exceeds_the_others_by(cause):
    seconds = [[0.01, 0.2, 0.03] for _ in range(4)]
    seconds[2][cause] += 0.3
    found = straggler(seconds, 1.5)
    assert (found.rank, found.cause) == (2, OWN[cause])
    assert (found.own_s, found.others_s) == (pytest.approx(0.54), pytest.approx(0.24))
    assert straggler(seconds, 2.5) is None


def test_ranks_that_differ_little_or_take_no_time_are_not_called_slow():
    assert straggler([[0.0, 0.10, 0.0], [0.0, 0.14, 0.0]], 1.5) is None
    assert straggler([[0.0, 0.001, 0.0], [0.0, 0.005, 0.0]], 1.5) is None
    assert straggler([[0.0, 0.10, 0.0], [0.0, 0.16, 0.0]], 1.5).rank == 1
