"""The stream: the same rows in the same order, whatever the ranks, workers and restarts."""

import json
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.batch import IGNORE, PAD_DOCUMENT, Batch
from streamed import LENGTH, rows, taken


def test_the_seed_decides_the_order(stream) -> None:
    first = taken(stream(), 6)
    assert first == taken(stream(), 6)
    assert first != taken(stream(seed=1), 6)


def test_batches_keep_their_promises(stream, tokenizer) -> None:
    s = stream(micro_rows=2)
    for _ in range(12):
        batches = s.next()
        assert len(batches) == 2
        for b in batches:
            check_batch(b, tokenizer)
        used = sum(int((b.document_ids != PAD_DOCUMENT).sum()) for b in batches)
        assert s.fill == pytest.approx(used / (4 * LENGTH))


def check_batch(b: Batch, tokenizer) -> None:
    assert b.input_ids.shape == (2, LENGTH)
    where = [(n, y, x) for n, (high, wide) in enumerate(b.grids) for y in range(high) for x in range(wide)]
    assert [tuple(place) for place in b.patch_index.tolist()] == where
    assert len(b.patches) == len(where)
    assert torch.equal(b.input_ids == tokenizer.image_id, b.image_ids > 0)
    assert b.image_ids[b.image_ids > 0].tolist() == [n + 1 for n in range(len(b.grids)) for _ in range(4)]
    for r in range(2):
        documents = b.document_ids[r].tolist()
        real = [d for d in documents if d]
        assert set(real) == set(range(1, len(b.sample_ids[r]) + 1))
        assert documents == sorted(real) + [0] * (LENGTH - len(real))
        for t, document in enumerate(documents):
            label = int(b.labels[r, t])
            if t + 1 == LENGTH or documents[t + 1] != document or not document:
                assert label == IGNORE
            else:
                assert label in (IGNORE, int(b.input_ids[r, t + 1]))
            begins = document and (t == 0 or documents[t - 1] != document)
            assert int(b.positions[r, t]) == (0 if begins or not document else int(b.positions[r, t - 1]) + 1)
            assert not begins or b.input_ids[r, t] == tokenizer.bos_id


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_world_size_sees_the_same_global_batch(stream, world_size: int) -> None:
    alone = stream(global_rows=8)
    ranks = [stream(global_rows=8, rank=r, world_size=world_size) for r in range(world_size)]
    for _ in range(5):
        whole = rows(alone.next())
        shared = [rows(r.next()) for r in ranks]
        assert sum(shared, Counter()) == whole
        assert all(r.state_dict() == alone.state_dict() for r in ranks)


def test_worker_processes_give_what_a_thread_gives(stream, tmp_path) -> None:
    expected = taken(stream(skipped_file=tmp_path / "a.jsonl"), 7)
    with_workers = stream(workers=2, prefetch_bytes=1)
    assert taken(with_workers, 4) == expected[:4]
    state = with_workers.state_dict()
    with_workers.close()
    other = stream(workers=1)
    other.load_state_dict(state)
    assert taken(other, 3) == expected[4:]


def test_resume_at_any_step_twice_in_a_row_on_other_ranks(stream) -> None:
    s = stream(global_rows=8)
    states, expected = [s.state_dict()], []
    for _ in range(14):
        expected.append(rows(s.next()))
        states.append(json.loads(json.dumps(s.state_dict())))
    for step in range(0, 12, 3):
        again = stream(global_rows=8)
        again.load_state_dict(states[step])
        assert rows(again.next()) == expected[step]
        assert again.state_dict() == states[step + 1]
        ranks = [stream(global_rows=8, rank=r, world_size=4) for r in range(4)]
        for r in ranks:
            r.load_state_dict(again.state_dict())
        assert sum((rows(r.next()) for r in ranks), Counter()) == expected[step + 1]
        assert ranks[3].state_dict() == states[step + 2]


restarts = st.lists(
    st.tuples(
        st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16]), st.integers(1, 3), st.sampled_from([0, 0, 1, 2, 4])
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(restarts)
def test_any_restarts_on_any_ranks_and_workers_give_the_unbroken_run(stream, restarts) -> None:
    unbroken = stream(global_rows=48)
    state = unbroken.state_dict()
    for world_size, steps, workers in restarts:
        ranks = [
            stream(global_rows=48, rank=r, world_size=world_size, workers=workers if r == 0 else 0)
            for r in range(world_size)
        ]
        for r in ranks:
            r.load_state_dict(state)
        for _ in range(steps):
            assert sum((rows(r.next()) for r in ranks), Counter()) == rows(unbroken.next())
        state = json.loads(json.dumps(ranks[-1].state_dict()))
        assert state == unbroken.state_dict()
        for r in ranks:
            r.close()
    unbroken.close()


def test_the_state_counts_what_was_consumed_is_small_and_knows_no_ranks(stream) -> None:
    s = stream()
    s.next()
    state = s.state_dict()
    second = rows(s.next())
    s.next()
    s.load_state_dict(state)  # rewinds a stream that has run ahead
    assert rows(s.next()) == second
    assert len(json.dumps(state)) < 400
    assert not {"rank", "world_size", "micro_rows", "workers"} & set(state)


def test_a_global_batch_of_another_size_takes_the_same_rows(stream) -> None:
    small, large = stream(), stream(global_rows=12)
    assert sum(taken(small, 6), Counter()) == sum(taken(large, 2), Counter())


def test_skipping_steps_is_taking_them(stream) -> None:
    s, jumped = stream(), stream()
    taken(s, 9)
    jumped.skip(9)
    assert jumped.state_dict() == s.state_dict()
    plan, ranks = jumped.upcoming()
    assert ranks.shape == (1, 4, 1)
    planned = Counter(tuple(p.tokens for p in row) for row in plan.rows)
    assert planned == Counter(
        tuple((b.document_ids[0] == d).sum().item() for d in range(1, len(b.sample_ids[0]) + 1))
        for b in jumped.next()
    )
