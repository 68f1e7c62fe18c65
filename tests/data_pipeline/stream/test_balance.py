"""Assigning rows to ranks: every row once, as many for each, and even in what they cost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import ConfigError
from data_pipeline.stream.balance import assign


@settings(max_examples=100)
@given(st.integers(1, 16), st.integers(1, 4), st.integers(1, 4), st.data())
def test_a_partition_with_equal_counts(world_size, micro_batches, micro_rows, data):
    n = world_size * micro_batches * micro_rows
    cost = st.lists(st.integers(0, 40_000), min_size=n, max_size=n)
    tokens, patches = (np.array(data.draw(cost)) for _ in range(2))
    assigned = assign(tokens, patches, world_size, micro_rows)
    assert assigned.shape == (world_size, micro_batches, micro_rows)
    assert sorted(assigned.ravel().tolist()) == list(range(n))
    each = patches[assigned].sum(2)
    assert (np.diff(each, axis=1) <= 0).all()  # heavier micro-batches first
    np.testing.assert_array_equal(assigned, assign(tokens, patches, world_size, micro_rows))


@settings(max_examples=50)
@given(st.integers(2, 16), st.integers(2, 8), st.integers(0, 99))
def test_ranks_differ_by_at_most_the_heaviest_row(world_size, rows, seed):
    """As with longest processing time first without equal counts; rows in turn differ by many times that."""
    patches = np.random.default_rng(seed).integers(0, 1000, world_size * rows)
    each = patches[assign(np.full(len(patches), 10), patches, world_size, 1)].sum((1, 2))
    assert each.max() - each.min() <= patches.max()


def test_heavy_rows_stand_beside_light_ones():
    patches = np.array([90, 0, 80, 10, 70, 20, 60, 30])
    assert patches[assign(np.full(8, 5), patches, 4, 2)].sum(2).tolist() == [[90]] * 4


def test_skewed_rows_reach_the_lower_bound():
    """One row costs as much as all the others of a rank: it gets the cheapest beside it."""
    patches = np.array([400, *[100] * 11, *[0] * 4])
    each = patches[assign(np.full(16, 5), patches, 4, 4)].sum((1, 2))
    assert each.max() == 400


def test_rows_without_pictures_are_balanced_by_tokens():
    tokens = np.array([1, 2, 3, 4, 5, 6, 7, 8])
    each = tokens[assign(tokens, np.zeros(8, np.int64), 4, 1)].sum((1, 2))
    assert each.tolist() == [9] * 4


def test_a_batch_that_does_not_divide_is_refused():
    for rows, world_size, micro_rows in ((10, 4, 1), (8, 2, 3), (0, 2, 1)):
        with pytest.raises(ConfigError, match=f"{rows} rows is no multiple"):
            assign(np.ones(rows, np.int64), np.ones(rows, np.int64), world_size, micro_rows)
