"""The stream as the trainer sees it: one seed, one sequence, after any stop and on any number of ranks."""

import copy
import gc
import json
import threading
from collections import Counter
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from data_pipeline.batch import IGNORE, PAD_DOCUMENT, Batch
from data_pipeline.errors import ConfigError, DataError
from data_pipeline.image_spec import ImageSpec
from data_pipeline.stream.chat import Rendered, render
from data_pipeline.stream.collate import Document, collate
from data_pipeline.stream.decode import GREY, Picture, blank
from data_pipeline.stream.faults import Faults
from data_pipeline.stream.loader import Stream
from data_pipeline.stream.pack import Piece
from data_pipeline.stream.source import Source

IMAGE = ImageSpec(longest_edge=16, patch=8)
IMAGE_TOKENS = 4


@pytest.fixture
def stream(dataset, tokenizer):
    """A maker of streams over the tiny dataset; all of them are closed at the end."""
    opened = []

    def make_stream(made=None, **changes) -> Stream:
        directory, manifest = made or dataset
        sources = {name: Source.open(directory, manifest, name) for name in manifest.sources()}
        arguments = {
            "sources": sources,
            "weights": dict.fromkeys(sources, 1.0),
            "tokenizer": tokenizer,
            "image": IMAGE,
            "image_tokens": IMAGE_TOKENS,
            "sequence_length": 96,
            "global_rows": 4,
            "micro_rows": 1,
            "rank": 0,
            "world_size": 1,
            "loss_on": "all_text",
            "seed": 0,
            "manifest_digest": manifest.digest,
        }
        opened.append(Stream(**{**arguments, **changes}))
        return opened[-1]

    yield make_stream
    for s in opened:
        s.close()


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        x.sample_ids == y.sample_ids
        and x.grids == y.grids
        and all(
            torch.equal(getattr(x, f.name), getattr(y, f.name))
            for f in fields(x)
            if f.name not in ("sample_ids", "grids")
        )
        for x, y in zip(a, b, strict=True)
    )


def ids(s: Stream, steps: int) -> list[tuple]:
    return [(s.next(), s.last_sample_ids)[1] for _ in range(steps)]


def test_seed_decides_the_order(stream) -> None:
    first = ids(stream(), 8)
    assert first == ids(stream(), 8)
    assert first != ids(stream(seed=1), 8)


def test_every_sample_once_per_epoch(stream) -> None:
    s = stream(weights={"caps": 1.0})
    drawn: list[str] = []
    while len(drawn) < 17 * 3:
        s.next()
        # Rows are filled first fit, so order is by draw only over whole batches: count over all of them.
        drawn += [i for row in s.last_sample_ids for i in row]
    at = Counter(drawn)
    assert len(at) == 17
    assert max(at.values()) - min(at.values()) <= 1


def test_batches_keep_their_promises(stream, tokenizer) -> None:
    s = stream(micro_rows=2)
    for _ in range(12):
        batches = s.next()
        assert len(batches) == 2
        for b in batches:
            check_batch(b, tokenizer)
        assert [row for b in batches for row in b.sample_ids] == list(s.last_sample_ids)
        used = sum(int((b.document_ids != PAD_DOCUMENT).sum()) for b in batches)
        assert s.fill == pytest.approx(used / (4 * 96))
        assert s.image_tokens == sum(int((b.image_ids > 0).sum()) for b in batches)


def check_batch(b: Batch, tokenizer) -> None:
    rows, length = b.input_ids.shape
    for name in ("input_ids", "labels", "positions", "document_ids", "image_ids"):
        tensor = getattr(b, name)
        assert tensor.dtype == torch.int64
        assert tensor.shape == (rows, length) == (2, 96)
    assert b.patches.dtype == torch.uint8
    assert b.patches.shape[1:] == (3, 8, 8)
    where = [(n, y, x) for n, (rows, cols) in enumerate(b.grids) for y in range(rows) for x in range(cols)]
    assert [tuple(place) for place in b.patch_index.tolist()] == where
    assert len(b.patches) == len(where)
    assert torch.equal(b.input_ids == tokenizer.image_id, b.image_ids > 0)
    assert torch.equal(b.input_ids == tokenizer.pad_id, b.document_ids == PAD_DOCUMENT)
    visual = b.image_ids[b.image_ids > 0].tolist()
    assert visual == [n + 1 for n in range(len(b.grids)) for _ in range(IMAGE_TOKENS)]
    for r in range(rows):
        documents = b.document_ids[r].tolist()
        real = [d for d in documents if d]
        assert real == sorted(real)
        assert set(real) == set(range(1, len(b.sample_ids[r]) + 1))
        assert documents == real + [0] * (length - len(real))
        for t in range(length):
            label = int(b.labels[r, t])
            last = t + 1 == length or documents[t + 1] != documents[t]
            if last or not documents[t]:
                assert label == IGNORE
            else:
                assert label in (IGNORE, int(b.input_ids[r, t + 1]))
                assert label < tokenizer.text_vocab_size
            starts = t == 0 or documents[t - 1] != documents[t]
            expected = 0 if starts or not documents[t] else int(b.positions[r, t - 1]) + 1
            assert int(b.positions[r, t]) == expected
            if starts and documents[t]:
                assert b.input_ids[r, t] == tokenizer.bos_id


def test_resume_at_any_step_and_twice_in_a_row(stream) -> None:
    s = stream()
    states, expected = [copy.deepcopy(s.state_dict())], []
    for _ in range(12):
        expected.append(s.next())
        states.append(json.loads(json.dumps(s.state_dict())))
    for step in range(12):
        again = stream()
        again.load_state_dict(states[step])
        assert same(again.next(), expected[step])
        assert again.state_dict() == states[step + 1]
        once_more = stream()
        once_more.load_state_dict(again.state_dict())
        for k in range(step + 1, min(step + 4, 12)):
            assert same(once_more.next(), expected[k])
            assert once_more.state_dict() == states[k + 1]
            assert once_more.step == k + 1


def test_state_counts_what_was_consumed_not_prefetched(stream) -> None:
    s = stream()
    s.next()
    state = s.state_dict()
    second = s.next()
    s.next()
    s.load_state_dict(state)  # rewinds a stream that has run ahead
    assert same(s.next(), second)
    assert len(json.dumps(state)) < 600
    assert not {"rank", "world_size", "micro_rows", "workers"} & set(state)


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_world_size_sees_the_same_global_batch(stream, world_size: int) -> None:
    alone = stream()
    ranks = [stream(rank=r, world_size=world_size) for r in range(world_size)]
    for _ in range(4):
        whole = alone.next()
        shares = [r.next() for r in ranks]
        assert {r.last_sample_ids for r in ranks} == {alone.last_sample_ids}
        for row, batch in enumerate(whole):
            assert same([batch], [shares[row % world_size][row // world_size]])
        assert all(r.state_dict() == alone.state_dict() for r in ranks)
    # and a run may go on with another number of ranks
    other = stream(rank=1, world_size=world_size)
    other.load_state_dict(alone.state_dict())
    expected = alone.next()
    assert same(other.next(), expected[1::world_size])


def test_long_documents_go_on_in_the_next_batch(stream, make, tmp_path, tokenizer) -> None:
    book = make.document(5, paragraphs=90, pictures=7, length=12)
    made = tmp_path / "book", make.dataset(tmp_path / "book", [book])
    s = stream(made, global_rows=2)
    state, text, states = s.state_dict(), [], []
    while s.state_dict()["draws"]["docs"] == 0:
        states.append(s.state_dict())
        # One source of one document: first fit still fills the first row with later, shorter pieces.
        for b in s.next():
            check_spans(b)
            text += b.input_ids[b.document_ids > 0].tolist()
    assert len(states) > 5
    assert states[1]["draws"] == state["draws"]
    assert states[1]["piece"] > 0
    whole = Counter(render(book, tokenizer, IMAGE_TOKENS, "all_text").input_ids.tolist())
    got = Counter(text)
    missing = {k: (whole[k], got[k]) for k in whole if got[k] < whole[k]}
    assert not missing
    again = stream(made, global_rows=2)
    again.load_state_dict(states[2])
    first = stream(made, global_rows=2)
    first.next(), first.next()
    assert same(again.next(), first.next())


def check_spans(b: Batch) -> None:
    for n in range(len(b.grids)):
        _, t = (b.image_ids == n + 1).nonzero(as_tuple=True)
        assert (t.diff() == 1).all()
        assert len(t) == IMAGE_TOKENS


def test_text_only_batches_have_no_patches(stream, make, tmp_path) -> None:
    directory = tmp_path / "text"
    made = directory, make.dataset(directory, [make.document(n, pictures=0) for n in range(5)])
    (batch,) = stream(made, global_rows=2, micro_rows=2).next()
    assert batch.patches.shape == (0, 3, 8, 8)
    assert batch.patch_index.shape == (0, 3)
    assert batch.grids == ()


def test_a_bad_picture_mutes_its_document_and_moves_nothing(stream, make, samples, tmp_path) -> None:
    bad = [
        replace(s, image_bytes=(b"<html>gone</html>",)) if s.id in ("cap3", "chat1") else s for s in samples
    ]
    made = tmp_path / "bad", make.dataset(tmp_path / "bad", bad)
    clean, broken = stream(), stream(made)
    half = [stream(made, rank=r, world_size=2) for r in range(2)]
    for _ in range(10):
        right, wrong = clean.next(), broken.next()
        assert clean.last_sample_ids == broken.last_sample_ids
        for r in half:
            r.next()
            assert r.last_sample_ids == clean.last_sample_ids
        for a, b in zip(right, wrong, strict=True):
            assert torch.equal(a.input_ids, b.input_ids)
            assert torch.equal(a.image_ids, b.image_ids)
            for number, name in enumerate(a.sample_ids[0], start=1):
                here = a.document_ids == number
                if name in ("cap3", "chat1"):
                    assert (b.labels[here] == IGNORE).all()
                    (n,) = (b.image_ids[here & (b.image_ids > 0)].unique() - 1).tolist()
                    assert (b.patches[b.patch_index[:, 0] == n] == GREY).all()
                else:
                    assert torch.equal(a.labels[here], b.labels[here])
    assert set(broken.skipped) == {"picture: not an image"}
    assert {name for name, _ in broken.skipped_samples} == {"cap3", "chat1"}
    assert half[0].skipped + half[1].skipped == broken.skipped
    assert not clean.skipped


def test_too_many_bad_pictures_stop_the_run(stream, make, tmp_path) -> None:
    directory = tmp_path / "broken"
    made = directory, make.dataset(directory, [make.caption(n, picture=b"junk") for n in range(4)])
    s = stream(made, global_rows=16)
    with pytest.raises(DataError, match=r"100 in a row.*not an image"):
        ids(s, 40)
    with pytest.raises(DataError, match="100 in a row"):  # and does not hang when asked again
        s.next()


def test_a_share_of_bad_pictures_stops_the_run() -> None:
    def meet(pictures: int, one_in: int) -> None:
        faults = Faults()
        for n in range(pictures):
            if n % one_in == 0:
                faults.bad(f"s{n}", "broken")
            else:
                faults.good()

    meet(3000, one_in=20)
    meet(1000, one_in=19)  # no verdict before there are 1000
    with pytest.raises(DataError, match=r"53 of the last 1000 pictures.*s1007"):
        meet(1100, one_in=19)


def test_samples_without_targets_are_counted(stream, make, tmp_path) -> None:
    quiet = make.document(0, paragraphs=0, pictures=0)
    directory = tmp_path / "quiet"
    made = directory, make.dataset(directory, [quiet, *(make.document(n, pictures=0) for n in (1, 2, 3))])
    s = stream(made)
    drawn = {i for step in ids(s, 5) for row in step for i in row}
    assert drawn == {"doc1", "doc2", "doc3"}
    assert set(s.skipped_samples) == {("doc0", "no targets")}
    assert s.skipped["no targets"] > 1
    made = tmp_path / "mute", make.dataset(tmp_path / "mute", [quiet])
    with pytest.raises(DataError, match=r"100 samples in a row.*doc0 of source 'docs': no targets"):
        stream(made).next()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "has seed 0, this run has 1"),
        ({"manifest_digest": "other"}, "has manifest_digest '.*', this run has 'other'"),
        ({"weights": {"caps": 1.0}}, r"has mixture \{.*'docs': 1.0\}, this run has \{'caps': 1.0\}"),
        ({"sequence_length": 80}, "has sequence_length 96, this run has 80"),
        ({"loss_on": "answers"}, "has loss_on 'all_text', this run has 'answers'"),
    ],
)
def test_state_of_another_stream_is_refused(stream, changes: dict, message: str) -> None:
    state = stream().state_dict()
    with pytest.raises(DataError, match=message):
        stream(**changes).load_state_dict(state)


@pytest.mark.parametrize("broken", [{"draws": {"caps": 1}}, {"piece": -1}, {"step": None}, {"draws": None}])
def test_broken_state_is_refused(stream, broken: dict) -> None:
    s = stream()
    with pytest.raises(DataError, match="no valid place"):
        s.load_state_dict({**s.state_dict(), **broken})


def test_arguments_that_cannot_work_are_refused(stream) -> None:
    cases = {
        r"global_rows 4 is no multiple of micro_rows \(3\)": {"micro_rows": 3},
        "rank 2 is not one of 2 ranks": {"rank": 2, "world_size": 2},
        "no source 'cap'; did you mean 'caps'": {"weights": {"cap": 1.0}},
        "an image span takes 102 tokens": {"image_tokens": 100},
    }
    for message, changes in cases.items():
        with pytest.raises(ConfigError, match=message):
            stream(**changes)


def test_a_forgotten_stream_ends_its_thread(stream) -> None:
    before = threading.active_count()
    s = stream()
    s.next()
    assert threading.active_count() == before + 1
    s.close()
    assert threading.active_count() == before
    s.next()
    s._ahead = None
    gc.collect()
    assert threading.active_count() == before


def test_collate_names_the_sample_at_fault(tokenizer, make) -> None:
    good = render(make.caption(0), tokenizer, IMAGE_TOKENS, "all_text")

    some = blank(IMAGE, (2, 1))

    def attempt(tokens: Rendered, pictures: int = 1, length: int = 96, picture: Picture = some) -> None:
        document = Document(Piece("cap0", "caps", 7, tokens), (picture,) * pictures)
        collate(
            [[document]],
            tokenizer=tokenizer,
            image=IMAGE,
            image_tokens=IMAGE_TOKENS,
            sequence_length=length,
        )

    attempt(good)
    cases = {
        "token ids": replace(good, input_ids=good.input_ids + 290),
        "visual or first token is marked": replace(good, loss=np.ones_like(good.loss)),
        "outside the image spans": replace(good, image_ids=np.roll(good.image_ids, 1)),
    }
    for message, tokens in cases.items():
        with pytest.raises(DataError, match=rf"sample cap0 of source 'caps' \(index 7\).*{message}"):
            attempt(tokens)
    with pytest.raises(DataError, match=r"2 pictures of 4 tokens each, but spans of \[4\]"):
        attempt(good, pictures=2)
    with pytest.raises(DataError, match="the row has room for 10"):
        attempt(good, length=10)
    with pytest.raises(DataError, match=r"sample cap0 .*: a picture of 3 x 1 patches, allowed are 1 to 2"):
        attempt(good, picture=blank(IMAGE, (3, 1)))
    for wrong in (
        Picture(some.patches, (2, 2)),
        Picture(some.patches.astype(np.float32), (2, 1)),
        blank(ImageSpec(longest_edge=8, patch=4), (2, 1)),
    ):
        with pytest.raises(DataError, match=r"sample cap0 .*: patches .*, expected are uint8 of \("):
            attempt(good, picture=wrong)


def test_fill_is_high_with_short_documents(stream) -> None:
    s = stream(sequence_length=256)
    fills = [(s.next(), s.fill)[1] for _ in range(10)]
    assert min(fills) > 0.75
    assert all(a != b for a, b in pairwise(ids(s, 3)))
