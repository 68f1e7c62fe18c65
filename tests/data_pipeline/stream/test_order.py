"""The order of samples over whole arrays against the same one position at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.stream.order import chance, chances, position, positions, variant, variants

seeds = st.integers(0, 2**63)
lengths = st.one_of(st.integers(1, 70), st.integers(1, 2**40))


@settings(max_examples=60)
@given(
    seeds, st.text(max_size=8), lengths, st.lists(st.tuples(st.integers(0, 9), st.integers(0)), max_size=30)
)
def test_arrays_give_what_the_scalar_functions_give(seed, source, n, pairs):
    epochs = np.array([e for e, _ in pairs], np.int64)
    index = np.array([i % n for _, i in pairs], np.int64)
    each = list(zip(epochs.tolist(), index.tolist(), strict=True))
    assert positions(seed, source, epochs, index, n).tolist() == [
        position(seed, source, e, i, n) for e, i in each
    ]
    assert variants(seed, source, epochs, index).tolist() == [variant(seed, source, e, i) for e, i in each]
    assert chances(seed, source, epochs, index).tolist() == [chance(seed, source, e, i) for e, i in each]


@settings(max_examples=40)
@given(seeds, st.integers(1, 3000), st.integers(0, 10**6))
def test_every_sample_once_in_an_epoch(seed, n, epoch):
    found = positions(seed, "s", np.full(n, epoch), np.arange(n), n)
    assert sorted(found.tolist()) == list(range(n))


def test_positions_outside_are_refused():
    with pytest.raises(ValueError, match="positions 0 to 5 are not all inside a source of 5"):
        positions(0, "s", np.zeros(2, np.int64), np.array([0, 5]), 5)
    with pytest.raises(ValueError, match="positions -1 to -1"):
        positions(0, "s", np.zeros(1, np.int64), np.array([-1]), 5)


def test_chances_are_even_and_differ_between_epochs_and_samples():
    """Sixteen cells of 1,000 each: chi-square at 15 degrees of freedom, 0.1 % quantile."""
    n = 16_000
    for epochs, index in ((np.arange(n), np.zeros(n, np.int64)), (np.zeros(n, np.int64), np.arange(n))):
        cells = np.bincount((chances(5, "s", epochs, index) * 16).astype(int), minlength=16)
        assert len(cells) == 16
        assert ((cells - 1000) ** 2 / 1000).sum() < 37.7
