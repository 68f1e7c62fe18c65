"""The mixture in closed form against a sequential twin, and its distance from the shares."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import ConfigError, DataError
from data_pipeline.stream.mixture import Mixture

weights = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.one_of(st.floats(1e-4, 1e3), st.integers(1, 4).map(float)),
    min_size=1,
    max_size=7,
)


def walked(
    mixture: Mixture, weight: dict[str, float], caps: dict[str, int], most: int
) -> list[tuple[str, int]]:
    """The same draws one after another: always the earliest, ties by the order of names; when a source has
    given all it may, the others start anew with the shares that are left."""
    given = Counter()
    drawn: list[tuple[str, int]] = []
    active = list(mixture.names)
    while active and len(drawn) < most:
        total = math.fsum(weight[n] for n in active)
        share = [weight[n] / total for n in active]
        since = [0] * len(active)
        gone = None
        while gone is None and len(drawn) < most:
            times = [(since[k] + (k + 0.5) / len(active)) / share[k] for k in range(len(active))]
            k = times.index(min(times))
            name = active[k]
            drawn.append((name, given[name]))
            since[k] += 1
            given[name] += 1
            if given[name] == caps.get(name):
                gone = name
        active = [n for n in active if n != gone]
    return drawn


def named(mixture: Mixture, start: int, stop: int) -> list[tuple[str, int]]:
    source, number = mixture.draws(start, stop)
    return [(mixture.names[s], j) for s, j in zip(source.tolist(), number.tolist(), strict=True)]


@settings(max_examples=80)
@given(weights, st.integers(0, 99), st.data())
def test_any_range_equals_the_sequential_twin(weight, seed, data):
    lengths = dict.fromkeys(weight, 10)
    capped = data.draw(
        st.dictionaries(st.sampled_from(sorted(weight)), st.sampled_from([0.5, 1.0, 2.5, 7.0]))
    )
    mixture = Mixture(weight, seed, lengths=lengths, max_epochs=capped)
    caps = {n: math.floor(10 * e) for n, e in capped.items()}
    twin = walked(mixture, weight, caps, 400)
    assert mixture.total == (sum(caps.values()) if len(caps) == len(weight) else None)
    assert named(mixture, 0, 400)[: len(twin)] == twin
    edges = sorted(data.draw(st.sets(st.integers(0, len(twin)), max_size=5)) | {0, len(twin)})
    assert [d for a, b in pairwise(edges) for d in named(mixture, a, b)] == twin
    for n in edges:
        counts = Counter(name for name, _ in twin[:n])
        assert mixture.counts(n) == {name: counts[name] for name in mixture.names}


@settings(max_examples=60)
@given(weights, st.integers(0, 99), st.sampled_from([0, 10**6, 10**10]))
def test_counts_stay_within_the_stated_distance_of_their_shares(weight, seed, start):
    mixture = Mixture(weight, seed, lengths=dict.fromkeys(weight, 10))
    counts = mixture.counts(start)
    assert sum(counts.values()) == start
    sources = len(weight)
    for n, (name, number) in enumerate(named(mixture, start, start + 300), start):
        assert number == counts[name]
        counts[name] += 1
        for other, share in mixture.shares.items():
            rounding = 1e-9 + n * 1e-15
            assert abs(counts[other] - (n + 1) * share) < 1 + share * (sources - 2) + rounding


def test_weights_of_tokens_are_divided_by_tokens_per_draw():
    mean = {"captions": 100.0, "books": 2000.0}
    mixture = Mixture({"captions": 1, "books": 1}, 0, lengths=dict.fromkeys(mean, 9), mean_tokens=mean)
    counts = mixture.counts(21_000)
    tokens = {n: counts[n] * mean[n] for n in mean}
    assert tokens["captions"] == pytest.approx(tokens["books"], rel=0.01)


def test_temperature_lifts_small_sources():
    lengths = {"large": 9, "small": 9}
    assert Mixture({"large": 81, "small": 1}, 0, lengths=lengths, temperature=2).shares == pytest.approx(
        {"large": 0.9, "small": 0.1}
    )


def test_a_source_leaves_after_its_epochs_and_the_others_share():
    mixture = Mixture({"a": 2, "b": 1, "c": 1}, 0, lengths={"a": 10, "b": 10, "c": 10}, max_epochs={"a": 1.5})
    source, _ = mixture.draws(0, 130)
    drawn = [mixture.names[s] for s in source.tolist()]
    assert drawn.count("a") == 15
    last = max(n for n, name in enumerate(drawn) if name == "a")
    assert last < 32
    assert abs(drawn[last + 1 :].count("b") - drawn[last + 1 :].count("c")) <= 1
    assert mixture.counts(130)["a"] == 15


def test_draws_at_the_same_time_come_in_the_order_of_names():
    """With these weights the first draws of all three tie, and the first source leaves with its own."""
    weight = {"a": 1.0, "b": 3.0, "c": 5.0}
    lengths = dict.fromkeys(weight, 1)
    seed = next(s for s in range(99) if Mixture(weight, s, lengths=lengths).names == ("a", "b", "c"))
    capped = Mixture(weight, seed, lengths=lengths, max_epochs={"a": 1})
    assert named(capped, 0, 20) == walked(capped, weight, {"a": 1}, 20)


def test_the_end_of_a_mixture_is_said():
    mixture = Mixture({"a": 1, "b": 3}, 0, lengths={"a": 4, "b": 4}, max_epochs={"a": 1, "b": 2})
    assert mixture.total == 12
    assert len(mixture.draws(8, 20)[0]) == 4
    with pytest.raises(DataError, match="all sources have given their max_epochs after 12 draws"):
        mixture.draws(12, 13)


def test_seeds_change_who_comes_first_and_the_order_of_names_in_the_recipe_does_not():
    lengths = dict.fromkeys("abcd", 5)
    orders = {Mixture(dict.fromkeys("abcd", 1.0), seed, lengths=lengths).names for seed in range(20)}
    assert len(orders) > 5
    forth, back = (dict.fromkeys(names, 1.0) for names in ("abcd", "dcba"))
    assert named(Mixture(forth, 3, lengths=lengths), 0, 50) == named(Mixture(back, 3, lengths=lengths), 0, 50)


def test_far_draws_are_found_without_those_before():
    mixture = Mixture({"a": 0.3, "b": 0.7}, 1, lengths={"a": 10, "b": 10})
    n = 10**12
    source, number = mixture.draws(n, n + 1000)
    for s, name in enumerate(mixture.names):
        taken = number[source == s]
        assert taken[0] == mixture.counts(n)[name]
        assert (np.diff(taken) == 1).all()


def test_nonsense_is_refused():
    lengths = {"coco": 5}
    with pytest.raises(ConfigError, match="mixture is empty"):
        Mixture({}, 0, lengths=lengths)
    for weight in (0, -1, math.nan, math.inf):
        with pytest.raises(ConfigError, match=r"weight .* of source 'coco' must be above 0"):
            Mixture({"coco": weight}, 0, lengths=lengths)
    with pytest.raises(ConfigError, match="no source 'coc'; did you mean 'coco'"):
        Mixture({"coc": 1}, 0, lengths=lengths)
    with pytest.raises(ConfigError, match="temperature 0 must be above 0"):
        Mixture({"coco": 1}, 0, lengths=lengths, temperature=0)
    with pytest.raises(ConfigError, match="max_epochs -1 of source 'coco'"):
        Mixture({"coco": 1}, 0, lengths=lengths, max_epochs={"coco": -1})
    with pytest.raises(ConfigError, match="max_epochs names no source 'coc'"):
        Mixture({"coco": 1}, 0, lengths=lengths, max_epochs={"coc": 1})
    with pytest.raises(DataError, match="source 'coco' has no samples"):
        Mixture({"coco": 1}, 0, lengths={"coco": 0})
    with pytest.raises(DataError, match="source 'coco' has no tokens"):
        Mixture({"coco": 1}, 0, lengths=lengths, mean_tokens={"coco": 0.0})
