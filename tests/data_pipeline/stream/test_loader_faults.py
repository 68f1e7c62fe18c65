"""Bad rows, foreign states, killed workers: nothing moves, and what is lost is counted or refused."""

import contextlib
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

from data_pipeline.batch import IGNORE
from data_pipeline.errors import ConfigError, DataError, TransientError
from data_pipeline.stream import faults
from data_pipeline.stream.budget import Budget
from data_pipeline.stream.decode import GREY
from data_pipeline.stream.making import Maker
from data_pipeline.stream.shares import Shares
from streamed import taken


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
        with contextlib.suppress(ProcessLookupError):  # one of a stream that is closed ends just now
            os.kill(child, signal.SIGKILL)
    with pytest.raises(TransientError, match=r"ended from outside.*same command resumes"):
        taken(s, 100)


def children() -> list[int]:
    """Descendants that run a DataLoader's worker: those of the fork server."""
    found, parents = [], [os.getpid()]
    while parents:
        pid = parents.pop()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
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
