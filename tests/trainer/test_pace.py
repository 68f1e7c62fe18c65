"""Where a rank's time goes, and which rank is called slow."""

from types import SimpleNamespace

import pytest

from trainer.engine import pace
from trainer.engine.pace import OWN, Pace, straggler


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
