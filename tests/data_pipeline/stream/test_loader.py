"""The stream as the trainer sees it: one seed, one sequence, after any stop, on any ranks and workers."""

import gc
import json
import os
import signal
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.batch import IGNORE, PAD_DOCUMENT, Batch
from data_pipeline.errors import ConfigError, DataError, TransientError
from data_pipeline.image_spec import ImageSpec
from data_pipeline.stream import faults
from data_pipeline.stream.budget import Budget
from data_pipeline.stream.datasets import Datasets
from data_pipeline.stream.decode import GREY
from data_pipeline.stream.loader import Stream
from data_pipeline.stream.making import Maker
from data_pipeline.stream.measure import sizes_of
from data_pipeline.stream.rendering import Rendering
from data_pipeline.stream.shares import Shares

LENGTH = 96


@pytest.fixture
def stream(dataset, tokenizer, tmp_path):
    """A maker of streams over the tiny dataset; all of them are closed at the end."""
    opened = []

    def make_stream(directory: Path = dataset[0], rendering: dict | None = None, **changes) -> Stream:
        datasets = Datasets.read([directory])
        look = Rendering(
            **{
                "tokenizer": tokenizer,
                "image": ImageSpec(longest_edge=16, patch=8),
                "image_tokens": 4,
                "loss_on": "all_text",
                "budget": Budget(tokens=LENGTH),
                **(rendering or {}),
            }
        )
        shares = changes.pop("shares", None) or Shares(weights=dict.fromkeys(datasets.names("train"), 1.0))
        sources = {name: datasets.source(name, "train") for name in datasets.names("train")}
        arguments = {
            "sources": sources,
            "sizes": {name: sizes_of(s, look, tmp_path / "sizes") for name, s in sources.items()},
            "shares": shares,
            "rendering": look,
            "global_rows": 4,
            "micro_rows": 1,
            "rank": 0,
            "world_size": 1,
            "seed": 0,
            "data_digest": datasets.digest,
        }
        opened.append(Stream(**{**arguments, **changes}))
        return opened[-1]

    yield make_stream
    for s in opened:
        s.close()


def rows(batches: list[Batch]) -> Counter:
    """Each row of the batches as a value: all that the model gets of it."""
    found: Counter = Counter()
    for b in batches:
        for r, ids in enumerate(b.sample_ids):
            tiles = sorted(set(b.image_ids[r].tolist()) - {0})
            pixels = tuple(b.patches[b.patch_index[:, 0] == n - 1].numpy().tobytes() for n in tiles)
            tensors = (b.input_ids, b.labels, b.positions, b.document_ids)
            found[(ids, pixels, *(tuple(t[r].tolist()) for t in tensors))] += 1
    return found


def taken(s: Stream, steps: int) -> list[Counter]:
    return [rows(s.next()) for _ in range(steps)]


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


def test_a_bad_picture_mutes_its_document_and_moves_nothing(stream, make, samples, tmp_path) -> None:
    bad = [
        replace(s, image_bytes=(b"<html>gone</html>",)) if s.id in ("cap3", "chat1") else s for s in samples
    ]
    make.dataset(tmp_path / "bad", bad)
    lines = tmp_path / "run" / "skipped.jsonl"
    clean, broken = stream(), stream(tmp_path / "bad", skipped_file=lines)
    met = []
    for step in range(1, 31):
        for a, b in zip(clean.next(), broken.next(), strict=True):
            assert a.sample_ids == b.sample_ids
            assert torch.equal(a.input_ids, b.input_ids)
            for number, name in enumerate(a.sample_ids[0], start=1):
                here = a.document_ids == number
                if name in ("cap3", "chat1"):
                    met.append((step, name))
                    assert (b.labels[here] == IGNORE).all()
                    (n,) = (b.image_ids[here & (b.image_ids > 0)].unique() - 1).tolist()
                    assert (b.patches[b.patch_index[:, 0] == n] == GREY).all()
                else:
                    assert torch.equal(a.labels[here], b.labels[here])
    written = [json.loads(line) for line in lines.read_text().splitlines()]
    assert sorted((w["step"], w["sample_id"]) for w in written) == sorted(met)
    assert {w["reason"] for w in written} == {"picture: not an image"}
    assert {(w["sample_id"], w["shard"], w["row"]) for w in written} == {
        ("cap3", "shards/caps-00000.arrow", 3),
        ("chat1", "shards/chats-00000.arrow", 1),
    }
    assert broken.skipped == {"picture: not an image": len(met)}
    assert not clean.skipped


def test_a_row_that_went_bad_after_it_was_measured_leaves_padding_without_targets(
    stream, samples, make, tmp_path
) -> None:
    s = stream()
    plan, _ = s.upcoming()
    wanted = next(p for row in plan.rows for p in row if p.source == "caps")
    row = next(n for n, row in enumerate(plan.rows) if wanted in row)
    broken = stream(break_row(samples, make, tmp_path, wanted.index))
    maker = Maker(broken.sources, broken._rendering, seed=0)
    right = Maker(s.sources, s._rendering, seed=0).make([plan.rows[row]])
    wrong = maker.make([plan.rows[row]])
    (fault,) = [f for f in wrong.met if f]
    assert (fault.reason, fault.sample_id, fault.source) == ("row cannot be decoded", None, "caps")
    number = plan.rows[row].index(wanted) + 1
    here = right.batch.document_ids == number
    assert torch.equal(right.batch.document_ids, wrong.batch.document_ids)
    assert (wrong.batch.labels[here] == IGNORE).all()
    assert not (wrong.batch.image_ids[here] > 0).any()
    assert torch.equal(right.batch.labels[~here], wrong.batch.labels[~here])


def break_row(samples, make, tmp_path: Path, index: int) -> Path:
    """The dataset again, with a kind that no sample has in row `index` of its captions."""
    captions = [s for s in samples if s.source == "caps"]
    victim = captions[index]
    object.__setattr__(victim, "kind", "nonsense")
    make.dataset(tmp_path / "broken", samples)
    return tmp_path / "broken"


def test_too_many_bad_pictures_stop_the_run_and_it_stays_stopped(stream, make, tmp_path) -> None:
    make.dataset(tmp_path / "junk", [make.caption(n, picture=b"junk") for n in range(40)])
    s = stream(tmp_path / "junk", global_rows=16)
    with pytest.raises(DataError, match=r"100 in a row.*not an image"):
        taken(s, 40)


def test_what_has_no_targets_is_counted_and_written_down_once_a_draw(stream, make, tmp_path) -> None:
    quiet = make.document(0, paragraphs=0, pictures=0)
    make.dataset(tmp_path / "quiet", [quiet, *(make.document(n, pictures=0) for n in (1, 2, 3))])
    lines = tmp_path / "skipped.jsonl"
    s = stream(tmp_path / "quiet", skipped_file=lines)
    drawn = {i for _ in range(5) for b in s.next() for row in b.sample_ids for i in row}
    assert drawn == {"doc1", "doc2", "doc3"}
    assert s.skipped["no targets"] == len(lines.read_text().splitlines()) > 1
    other = stream(tmp_path / "quiet", rank=1, world_size=2, skipped_file=tmp_path / "of_rank_1.jsonl")
    other.next()
    assert other.skipped["no targets"] > 0
    assert not (tmp_path / "of_rank_1.jsonl").exists()  # all ranks see the same: rank 0 writes it


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "has seed 0, this run has 1"),
        ({"data_digest": "other"}, "has data '.*', this run has 'other'"),
        ({"shares": Shares(weights={"caps": 1.0})}, r"has mixture \{.*'docs': 1.0.*, this run has \{"),
        ({"rendering": {"loss_on": "answers"}}, "has rendering '"),
        ({"rendering": {"budget": Budget(tokens=80)}}, "has rendering '"),
    ],
)
def test_the_state_of_another_stream_is_refused(stream, changes: dict, message: str) -> None:
    state = stream().state_dict()
    with pytest.raises(DataError, match=message):
        stream(**changes).load_state_dict(state)


def test_changed_data_goes_on_in_a_new_ledger_where_that_is_accepted(stream) -> None:
    s = stream()
    expected = taken(s, 5)
    changed = stream(data_digest="other")
    with pytest.raises(DataError, match="has data"):
        changed.load_state_dict(s.state_dict())
    changed.load_state_dict(s.state_dict(), accept_changed_data=True)
    state = changed.state_dict()
    assert (state["ledger"], state["window"], state["row"], state["step"]) == (1, 0, 0, 5)
    assert taken(changed, 5) != expected  # an order of its own, not the first one over again
    after = changed.state_dict()
    again = stream(data_digest="other")
    again.load_state_dict(after, accept_changed_data=True)  # not changed since: it just resumes
    assert again.state_dict() == after
    assert taken(again, 2) == taken(changed, 2)


@pytest.mark.parametrize("broken", [{"window": None}, {"row": -1}, {"step": None}, {"ledger": "0"}])
def test_a_broken_state_is_refused(stream, broken: dict) -> None:
    s = stream()
    with pytest.raises(DataError, match="no valid place"):
        s.load_state_dict({**s.state_dict(), **broken})


def test_arguments_that_cannot_work_are_refused(stream) -> None:
    cases = {
        r"global_rows 4 is no multiple of micro_rows \(3\)": {"micro_rows": 3},
        "rank 2 is not one of 2 ranks": {"rank": 2, "world_size": 2},
        "no source 'cap'; did you mean 'caps'": {"shares": Shares(weights={"cap": 1.0})},
    }
    for message, changes in cases.items():
        with pytest.raises(ConfigError, match=message):
            stream(**changes)


def test_the_steps_before_the_mixtures_end_are_given_before_the_error(stream) -> None:
    once = Shares(weights={"caps": 1.0}, max_epochs={"caps": 1})
    counted = stream(shares=once, workers=1)
    drawn: Counter = Counter()

    def take_all() -> None:
        while True:
            drawn.update(i for b in counted.next() for row in b.sample_ids for i in row)

    with pytest.raises(DataError, match="the mixture is at its end"):
        take_all()
    assert set(drawn.values()) == {1}
    assert len(drawn) > 8


def test_a_worker_that_is_killed_is_trouble_of_the_machine(stream) -> None:
    s = stream(workers=1)
    s.next()
    for child in children():
        os.kill(child, signal.SIGKILL)
    with pytest.raises(TransientError, match=r"ended from outside.*same command resumes"):
        taken(s, 100)


def children() -> list[int]:
    """Descendants that run a DataLoader's worker: those of the fork server."""
    found, parents = [], [os.getpid()]
    while parents:
        pid = parents.pop()
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                parents.append(child)
                if "forkserver" in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(child)
    return found


def test_more_bytes_let_workers_prepare_more(stream) -> None:
    ahead = [stream(workers=2, prefetch_bytes=n)._prefetch() for n in (1, 100_000, 1 << 40)]
    assert ahead[0] == 1 < ahead[1] < ahead[2] <= 16


def test_a_forgotten_stream_ends_its_thread(stream) -> None:
    def running() -> int:
        return sum(thread.name == "stream-ahead" for thread in threading.enumerate())

    s = stream()
    s.next()
    assert running() == 1
    s.close()
    assert running() == 0
    s.next()
    s._ahead = None
    gc.collect()
    assert running() == 0


def test_the_limits_of_faults_are_those_of_the_documents() -> None:
    assert (faults.IN_A_ROW, faults.WINDOW, faults.SHARE) == (100, 1000, 0.05)
