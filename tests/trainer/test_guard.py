"""Which steps are bad and what follows: numbers alone."""

import json
import math

import pytest
from pydantic import ValidationError

from data_pipeline.errors import ConfigError
from trainer.engine.faults import factor, parse_faults
from trainer.engine.guard import Guard, Memory, action, judge, robust_z
from trainer.engine.state import TrainState
from trainer.observe.sinks import JsonlSink

WATCHING = Guard(spike_z=6, window=8)


def steps(guard, losses, norm=1.0, memory=None):
    """The verdicts on the losses of the steps 1, 2, ..., and the memory after them."""
    memory, verdicts = memory or Memory(), []
    for step, loss in enumerate(losses, 1):
        bad = judge(guard, memory, loss, norm)
        verdicts.append(action(guard, memory) if bad else None)
        memory = memory.after_bad(step) if bad else memory.after_good(guard, step, loss, norm)
    return verdicts, memory


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_or_norm_that_is_not_finite_is_bad_whatever_the_guard_watches(value):
    for guard in (Guard(), WATCHING):
        assert judge(guard, Memory(), value, 1.0).what == "loss"
        assert judge(guard, Memory(), 1.0, value).what == "gradient norm"
        assert judge(guard, Memory(), 1.0, 1.0) is None


def test_the_rungs_come_in_the_order_of_the_ladder():
    guard = Guard(ladder=["skip", "skip", "skip_window", "rewind", "stop"])
    assert steps(guard, [math.nan] * 6)[0] == ["skip", "skip", "skip_window", "rewind", "stop", "stop"]


def test_the_ladder_is_climbed_by_bad_steps_in_a_row_and_begins_anew_after_a_good_one():
    nan = math.nan
    verdicts, memory = steps(Guard(ladder=["skip", "rewind", "stop"]), [nan, nan, 1.0, nan, nan, nan])
    assert verdicts == ["skip", "rewind", None, "skip", "rewind", "stop"]
    assert memory.furthest == 6


def test_after_a_rewind_the_ladder_begins_anew_only_past_the_bad_step():
    guard = Guard(ladder=["rewind", "skip", "stop"])
    back = Memory(rung=1, furthest=6)  # rewound to step 4
    on_the_way = back.after_good(guard, 5, 1.0, 1.0).after_good(guard, 6, 1.0, 1.0)
    assert action(guard, on_the_way) == "skip"
    assert action(guard, on_the_way.after_good(guard, 7, 1.0, 1.0)) == "rewind"


def test_a_spike_is_far_above_the_good_steps_before_it_and_no_measure_for_later_ones():
    calm = [2.0, 2.1, 1.9, 2.0, 2.05, 1.95, 2.1, 1.9]
    verdicts, memory = steps(WATCHING, [*calm, 9.0, 2.0, 9.0, 0.1])
    assert verdicts == [None] * 8 + ["skip", None, "skip", None]
    assert 9.0 not in memory.losses
    assert judge(WATCHING, memory, 2.0, 50.0).what == "gradient norm"
    assert "where 1.975 is usual (z 63.2 > 6)" in str(judge(WATCHING, memory, 9.0, 1.0))


def test_nothing_finite_is_a_spike_before_the_window_is_full_or_where_none_is_looked_for():
    assert steps(WATCHING, [2.0] * 7 + [1e9])[0] == [None] * 8
    assert steps(Guard(), [2.0] * 200 + [1e9])[0] == [None] * 201


def test_the_score_is_that_of_a_normal_distribution_and_what_never_moves_may_move_by_a_few_percent():
    assert robust_z(13.0, tuple(range(1, 10))) == (5, pytest.approx(8 / (1.4826 * 2)))
    assert robust_z(2.1, (2.0,) * 10) == (2.0, pytest.approx(5.0))


def test_the_memory_comes_back_from_a_checkpoint_and_one_without_it_has_none():
    _, memory = steps(WATCHING, [2.0, 2.1, math.nan])
    state = TrainState(step=3, guard=memory)
    assert TrainState.from_json(json.loads(json.dumps(state.to_json()))) == state
    assert TrainState.from_json({"step": 3, "tokens": 0, "stream": {}}).guard == Memory()


@pytest.mark.parametrize("ladder", [[], ["skip"], ["stop", "skip", "stop"], ["pause", "stop"]])
def test_a_ladder_ends_with_its_one_stop(ladder):
    with pytest.raises(ValidationError, match="ladder"):
        Guard(ladder=ladder)


def test_rehearsed_gradients_are_those_of_one_rank_in_one_step():
    stage = {"ranks": 2, "steps": 9, "checkpoint_every": 4}
    faults = parse_faults("nan:0@5,spike:1@6,kill:1@7", **stage)
    assert math.isnan(factor(faults, 0, 5))
    assert factor(faults, 1, 6) > 1e3
    assert [factor(faults, *at) for at in ((1, 5), (0, 6), (1, 7))] == [1.0] * 3
    with pytest.raises(ConfigError, match="spike"):
        parse_faults("spkie:0@5", **stage)


def test_a_rewound_metrics_file_ends_with_its_step_and_says_where_the_data_goes_on(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl", 0)
    for step in (1, 2, 3):
        sink.write({"step": step, "loss": math.nan if step == 1 else 1.0, "row": step})
    sink.rewind(2, {"row": 7})
    sink.write({"step": 3, "loss": 2.0, "row": 8})
    sink.close()
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [
        '{"step": 1, "loss": null, "row": 1}',
        '{"step": 2, "loss": 1.0, "row": 7}',
        '{"step": 3, "loss": 2.0, "row": 8}',
    ]
