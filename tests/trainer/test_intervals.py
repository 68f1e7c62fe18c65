"""Bootstrap intervals and paired comparisons against theory, enumeration and drawing samples one by one."""

import itertools
from statistics import NormalDist

import numpy as np
import pytest

from trainer.evaluation.intervals import RESAMPLES, SEED, Scored, compare, intervals, means


def mean_of(values, units=None) -> Scored:
    values = np.asarray(values, dtype=float)
    terms = np.stack([values, np.ones(len(values))], axis=1)
    return Scored({}, terms, units or range(len(values)), means(["mean"]))


def test_the_interval_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(1).normal(5, 2, 4000)
    low, high = intervals(mean_of(values))["mean"]
    half = NormalDist().inv_cdf(0.975) * values.std() / np.sqrt(len(values))
    assert [low, high] == pytest.approx([values.mean() - half, values.mean() + half], abs=half / 8)


def test_it_holds_the_truth_nineteen_times_in_twenty():
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(100):
        low, high = intervals(mean_of(rng.random(60) < 0.3))["mean"]
        inside += low <= 0.3 <= high
    assert 88 <= inside <= 99


def test_few_samples_give_the_quantiles_of_all_possible_resamples():
    values = [1.0, 2.0, 4.0, 8.0]
    every = [np.mean(drawn) for drawn in itertools.product(values, repeat=4)]
    low, high = np.quantile(every, [0.025, 0.975])
    assert intervals(mean_of(values))["mean"] == pytest.approx([low, high], abs=0.6)


def test_a_ratio_is_drawn_as_drawing_samples_one_by_one_does():
    rng = np.random.default_rng(3)
    above, below = rng.random(50), rng.integers(1, 9, 50).astype(float)
    scored = Scored({}, np.stack([above, below], axis=1), range(50), means(["r"]))
    naive, same = [], np.random.default_rng(SEED)
    for _ in range(RESAMPLES):
        drawn = same.integers(0, 50, 50)
        naive.append(sum(above[i] for i in drawn) / sum(below[i] for i in drawn))
    assert intervals(scored)["r"] == pytest.approx(np.quantile(naive, [0.025, 0.975]))


def test_samples_of_one_unit_are_drawn_together():
    values = np.repeat(np.random.default_rng(4).random(30), 20)
    alone = intervals(mean_of(values))["mean"]
    together = intervals(mean_of(values, [i // 20 for i in range(600)]))["mean"]
    # Twenty copies say no more than one: the interval is that of 30 values.
    assert together == pytest.approx(intervals(mean_of(values[::20]))["mean"])
    assert together[1] - together[0] > 3 * (alone[1] - alone[0])


def test_units_may_lie_scattered_and_have_any_size():
    values, units = [1, 0, 1, 1, 0, 0, 1], ["a", "b", "a", "c", "b", "a", "c"]
    order = np.argsort(units, kind="stable")
    sorted_ = mean_of(np.array(values)[order], [units[i] for i in order])
    assert intervals(mean_of(values, units)) == intervals(sorted_)


def test_the_same_predictions_do_not_differ():
    scored = mean_of(np.random.default_rng(5).random(40))
    assert compare(scored, scored)["mean"] == {"difference": 0.0, "interval_95": [0.0, 0.0], "p": 1.0}


def test_a_small_steady_gain_is_seen_where_single_intervals_overlap():
    base = np.random.default_rng(6).random(200)
    ours, theirs = mean_of(base + 0.01), mean_of(base)
    assert intervals(ours)["mean"][0] < intervals(theirs)["mean"][1]
    compared = compare(ours, theirs)["mean"]
    assert compared["difference"] == pytest.approx(0.01)
    assert compared["interval_95"] == pytest.approx([0.01, 0.01])
    assert compared["p"] == pytest.approx(2 / (RESAMPLES + 1))


def test_the_comparison_turned_round_changes_sign_only():
    rng = np.random.default_rng(7)
    ours, theirs = mean_of(rng.random(50)), mean_of(rng.random(50))
    one, other = compare(ours, theirs)["mean"], compare(theirs, ours)["mean"]
    assert one["difference"] == pytest.approx(-other["difference"])
    assert one["interval_95"] == pytest.approx([-x for x in reversed(other["interval_95"])])
    assert one["p"] == other["p"]


def test_without_a_difference_p_is_small_one_time_in_twenty():
    rng = np.random.default_rng(8)
    found = [compare(mean_of(rng.random(60)), mean_of(rng.random(60)))["mean"]["p"] for _ in range(100)]
    assert 1 <= sum(p < 0.05 for p in found) <= 12


def test_other_samples_are_not_compared():
    with pytest.raises(ValueError, match="same samples"):
        compare(mean_of([1, 2, 3]), mean_of([1, 2]))
    with pytest.raises(ValueError, match="same samples"):
        compare(mean_of([1, 2], ["a", "b"]), mean_of([1, 2], ["b", "a"]))


def test_a_share_of_nothing_is_zero():
    scored = Scored({}, np.zeros((5, 2)), range(5), means(["none"]))
    assert intervals(scored) == {"none": [0.0, 0.0]}
