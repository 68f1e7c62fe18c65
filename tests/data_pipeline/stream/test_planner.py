"""The plan: every piece once an epoch, the same rows for any batch size, any cursor a place to go on from."""

import hashlib
import json
from collections import Counter
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import ConfigError, DataError
from data_pipeline.stream.balance import assign
from data_pipeline.stream.budget import Budget
from data_pipeline.stream.mixture import Mixture
from data_pipeline.stream.order import position, variant
from data_pipeline.stream.planner import Cursor, Planner
from data_pipeline.stream.sizes import Chunk, Sizes, write_sizes

BUDGET = Budget(tokens=512, patches=9000)
FIXED = "c73b8e3f0e989f06"


def some_sizes(folder, name: str, n: int, seed: int = 0, modes: int = 1) -> tuple[Sizes, list]:
    """Samples of 1 to 3 captions with 0 to 3 pieces; where one is missing, a reason."""
    rng = np.random.default_rng([seed, n])
    samples = []
    for _ in range(n):
        variants = []
        for _ in range(int(rng.integers(1, 4)) * modes):
            count = int(rng.choice([0, 1, 1, 1, 2, 3]))
            images = rng.integers(0, 3, count).tolist()
            pieces = [(int(rng.integers(3, 200)) + 66 * i, i, i * int(rng.integers(1, 4000))) for i in images]
            variants.append((pieces, "no targets" if not pieces else None))
        samples.append(variants)
    write_sizes(folder / name, [Chunk.of(samples)], key="k", modes=modes)
    return Sizes.open(folder / name, "k"), samples


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    return {name: some_sizes(folder, name, n)[0] for name, n in {"a": 700, "b": 150, "c": 5}.items()}


def planner_of(sizes, weights=None, seed=1, **options) -> Planner:
    weights = weights or dict.fromkeys(sizes, 1.0)
    mixture = Mixture(weights, seed, lengths={n: len(s) for n, s in sizes.items()}, **options)
    return Planner(sizes, mixture, BUDGET, seed)


def stream(planner: Planner, cursor: Cursor, steps: int, global_rows: int):
    rows, cursors, skipped = [], [cursor], []
    for _ in range(steps):
        plan = planner.plan(cursor, global_rows)
        rows += plan.rows
        skipped += plan.skipped
        cursor = plan.after
        cursors.append(cursor)
    return rows, cursors, skipped


@pytest.mark.parametrize("n", [1, 7, 700])
def test_every_piece_of_every_sample_exactly_once_in_an_epoch(tmp_path, n):
    sizes, samples = some_sizes(tmp_path, "s", n, seed=3)
    if not any(pieces for s in samples for pieces, _ in s):
        pytest.skip("no sample with a piece")
    planner = planner_of({"s": sizes}, max_epochs={"s": 3})
    seen = Counter()
    skipped = Counter()
    cursor = planner.start()
    while cursor.window * planner.window < 3 * n:
        plan = planner.plan(cursor, 1)
        cursor = plan.after
        skipped.update(plan.skipped)
        seen.update(plan.rows[0])
    with pytest.raises(DataError, match=f"all sources have given their max_epochs after {3 * n:,} draws"):
        planner.plan(cursor, 1)
    wanted = Counter()
    unusable = Counter()
    for epoch in range(3):
        for index, variants in enumerate(samples):
            chosen = variant(1, "s", epoch, index) % len(variants)
            pieces, reason = variants[chosen]
            wanted.update(("s", index, epoch, chosen, k, *p) for k, p in enumerate(pieces))
            if reason:
                unusable["s", index, reason] += 1
    assert Counter({astuple(p): n for p, n in seen.items()}) == wanted
    assert skipped == unusable


def test_draws_come_in_the_order_of_the_permutation(three):
    """Pieces of a window are those of the mixture's next draws, whatever rows they stand in."""
    planner = planner_of(three)
    mixture = Mixture(dict.fromkeys(three, 1.0), 1, lengths={n: len(s) for n, s in three.items()})
    rows, cursor = [], planner.start()
    while cursor.window == 0:
        plan = planner.plan(cursor, 1)
        rows += plan.rows
        cursor = plan.after
    source, number = mixture.draws(0, planner.window)
    drawn = {
        (
            name := mixture.names[s],
            position(1, name, j // len(three[name]), j % len(three[name]), len(three[name])),
        )
        for s, j in zip(source.tolist(), number.tolist(), strict=True)
    }
    assert {(p.source, p.index) for row in rows for p in row} <= drawn


@settings(max_examples=25)
@given(data=st.data())
def test_rows_are_the_same_for_every_batch_size(three, data):
    planner = planner_of(three)
    wanted, _, noted = stream(planner, planner.start(), 1, 960)
    batch = data.draw(st.sampled_from([1, 2, 3, 5, 8, 16, 60, 96, 320]))
    rows, _, skipped = stream(planner_of(three), planner.start(), 960 // batch, batch)
    assert rows == wanted
    assert skipped == noted


@pytest.mark.parametrize("world_size", range(1, 17))
def test_the_global_batch_is_the_same_for_every_world_size(three, world_size):
    planner = planner_of(three)
    plan = planner.plan(planner.start(), world_size * 6)
    assigned = assign(plan.rows.tokens, plan.rows.patches, world_size, 2)
    of_ranks = [plan.rows[r] for rank in assigned for micro in rank for r in micro]
    whole = planner_of(three).plan(planner.start(), world_size * 6)
    assert Counter(of_ranks) == Counter(whole.rows)


@settings(max_examples=15)
@given(data=st.data())
def test_going_on_from_any_cursor_twice_equals_the_unbroken_run(three, data):
    unbroken = planner_of(three)
    rows, cursors, _ = stream(unbroken, unbroken.start(), 60, 8)
    first = data.draw(st.integers(0, 30))
    second = data.draw(st.integers(first, 59))
    before, after, _ = stream(planner_of(three), stored(cursors[first]), second - first, 8)
    assert before == rows[8 * first : 8 * second]
    assert after[-1] == cursors[second]
    assert stream(planner_of(three), stored(after[-1]), 60 - second, 8)[0] == rows[8 * second :]


def stored(cursor: Cursor) -> Cursor:
    """As it comes back from the state's JSON."""
    return Cursor(*json.loads(json.dumps(list(cursor))))


def test_the_stream_goes_on_where_a_source_has_left(three):
    planner = planner_of(three, max_epochs={"b": 1, "c": 2})
    plan = planner.plan(Cursor(9, 0), 50)
    assert {p.source for row in plan.rows for p in row} == {"a"}


def test_no_row_exceeds_its_budgets_and_the_fill_is_what_rows_hold(three):
    planner = planner_of(three)
    cursor = planner.start()
    for _ in range(5):
        plan = planner.plan(cursor, 64)
        cursor = plan.after
        for row, tokens, patches in zip(plan.rows, plan.rows.tokens, plan.rows.patches, strict=True):
            assert sum(p.tokens for p in row) == tokens <= 512
            assert sum(p.patches for p in row) == patches <= 9000
        assert plan.fill == sum(p.tokens for row in plan.rows for p in row) / (64 * 512)


def test_seeds_give_other_rows(three):
    a, b = (planner_of(three, seed=s).plan(Cursor(0, 0), 50).rows for s in (1, 2))
    assert set(a) != set(b)


def test_rows_of_a_window_are_shuffled(three):
    """Packing begins with the largest pieces; the stream must not."""
    planner = planner_of({"a": three["a"]}, weights={"a": 1.0})
    largest = [max(p.tokens for p in row) for row in planner.plan(planner.start(), 200).rows]
    assert abs(np.corrcoef(largest, np.arange(200))[0, 1]) < 0.3


def test_pictures_are_split_as_often_as_asked(tmp_path):
    sizes, _ = some_sizes(tmp_path, "s", 400, modes=2)
    mixture = Mixture({"s": 1.0}, 0, lengths={"s": 400})
    for splitting in (0.0, 0.3, 1.0):
        plan = Planner({"s": sizes}, mixture, BUDGET, 0, splitting).plan(Cursor(0, 0), 400)
        split = {(p.epoch, p.index): p.variant % 2 for row in plan.rows for p in row}
        assert np.mean(list(split.values())) == pytest.approx(splitting, abs=0.06)
    with pytest.raises(ConfigError, match=r"splitting is 1\.5"):
        Planner({"s": sizes}, mixture, BUDGET, 0, 1.5)


def made(folder, samples, name="s") -> dict[str, Sizes]:
    write_sizes(folder / name, [Chunk.of(samples)], key="k")
    return {name: Sizes.open(folder / name, "k")}


def test_a_hundred_unusable_samples_in_a_row_stop_the_plan(tmp_path):
    good, bad = [([(50, 0, 0)], None)], [([], "no targets")]
    planner = planner_of(made(tmp_path, [good] + [bad] * 4999))
    with pytest.raises(DataError, match=r"100 samples in a row .* number \d+ of source 's': no targets"):
        planner.plan(planner.start(), 1)
    few = planner_of(made(tmp_path, [good] + [bad] * 3))
    plan = few.plan(few.start(), 4)
    assert {reason for _, _, reason in plan.skipped} == {"no targets"}


@pytest.mark.parametrize("unusable", [99, 100])
def test_ninety_nine_unusable_samples_in_a_row_are_passed_over(tmp_path, unusable):
    n = 5000
    bad = {position(1, "s", 0, 10 + i, n) for i in range(unusable)}
    samples = [[([], "no targets") if i in bad else ([(50, 0, 0)], None)] for i in range(n)]
    planner = planner_of(made(tmp_path, samples))
    if unusable == 100:
        with pytest.raises(DataError, match=f"number {position(1, 's', 0, 109, n)} of source 's'"):
            planner.plan(planner.start(), 1)
    else:
        assert {index for _, index, _ in planner.plan(planner.start(), 1).skipped} == bad


def test_what_is_skipped_is_named_in_the_order_of_draws(tmp_path):
    part = [[([(400, 0, 0)], "longer than a row")]] * 50
    sizes = made(tmp_path, part) | made(tmp_path, part, "t")
    planner = planner_of(sizes, {"s": 0.4, "t": 0.6})
    mixture = Mixture({"s": 0.4, "t": 0.6}, 1, lengths={"s": 50, "t": 50})
    drawn = [mixture.names[s] for s in mixture.draws(0, planner.window)[0].tolist()]
    assert [source for source, _, _ in planner.plan(planner.start(), 1).skipped] == drawn


def test_a_source_without_any_target_is_refused_at_once(tmp_path):
    with pytest.raises(DataError, match="source 's' has no sample with a target to train on: no text"):
        planner_of(made(tmp_path, [[([], "no text")]] * 9))


def test_a_sample_that_lost_a_part_is_noted_and_its_pieces_are_used(tmp_path):
    planner = planner_of(made(tmp_path, [[([(400, 0, 0)], "longer than a row")]]))
    plan = planner.plan(planner.start(), planner.window)
    assert len(plan.skipped) == planner.window
    assert plan.skipped[0] == ("s", 0, "longer than a row")


def test_sizes_made_for_another_row_are_refused(tmp_path):
    planner = planner_of(made(tmp_path, [[([(513, 0, 0)], None)]]))
    with pytest.raises(DataError, match="a piece of 513 tokens, a row holds 512"):
        planner.plan(planner.start(), 1)


def test_sizes_and_mixture_must_belong_together(three):
    mixture = Mixture({"a": 1.0}, 0, lengths={"a": 99})
    with pytest.raises(DataError, match="those of 700 samples, it has 99"):
        Planner(three, mixture, BUDGET, 0)
    with pytest.raises(ConfigError, match="no sizes of source 'a'"):
        Planner({}, mixture, BUDGET, 0)


def test_a_cursor_of_another_stream_is_refused(three):
    with pytest.raises(DataError, match=r"cursor .* is of another stream"):
        planner_of(three).plan(Cursor(0, 100_000), 1)


def test_the_plan_is_fixed_for_all_time(tmp_path):
    """A saved run resumes on another machine and release: this must never change."""
    samples = [
        [([(20 + n * 37 % 91, n % 3, n % 3 * (n * 53 % 997))], None)] * (1 + n % 2) for n in range(600)
    ]
    planner = planner_of(made(tmp_path, samples) | made(tmp_path, samples[:100], "t"), {"s": 0.3, "t": 0.7})
    page = json.dumps([[astuple(p) for p in row] for row in planner.plan(Cursor(3, 2), 100).rows])
    assert hashlib.blake2b(page.encode(), digest_size=8).hexdigest() == FIXED
