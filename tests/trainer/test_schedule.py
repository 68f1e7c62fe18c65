"""The learning rate's shape at its landmarks."""

from itertools import pairwise

import pytest

from trainer.engine.schedule import lr_factor


def factors(schedule, steps=10, warmup=2, least=0.1):
    return [
        lr_factor(s, steps=steps, warmup_steps=warmup, schedule=schedule, min_ratio=least)
        for s in range(steps)
    ]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_warm_up_is_linear_the_peak_follows_and_the_last_step_has_the_least(schedule):
    f = factors(schedule)
    assert f[:2] == [0.5, 1.0]
    assert f[2] == 1.0
    assert f[-1] == pytest.approx(0.1)
    assert f[2:] == sorted(f[2:], reverse=True)


def test_linear_falls_by_the_same_amount_each_step():
    f = factors("linear")[2:]
    assert [a - b for a, b in pairwise(f)] == pytest.approx([0.9 / 7] * 7)


def test_constant_stays_at_its_peak():
    assert factors("constant")[2:] == [1.0] * 8


def test_an_unknown_schedule_is_an_error_naming_the_allowed():
    with pytest.raises(ValueError, match="constant, linear, cosine"):
        factors("sine")
