"""Order, mixture, splitting and packing: arithmetic, so tested over many random cases."""

import random
from collections import Counter

import numpy as np
import pytest

from data_pipeline.errors import ConfigError
from data_pipeline.stream.chat import Rendered, render
from data_pipeline.stream.order import position, variant
from data_pipeline.stream.pack import Piece, Rows
from data_pipeline.stream.plan import Mixture
from data_pipeline.stream.split import split

BOS, EOS, IS, IE, IMG = 1, 2, 263, 264, 265
FIXED = [2, 5, 0, 1, 6, 7, 8, 3, 4, 9]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097])
def test_order_is_a_permutation(n: int) -> None:
    assert sorted(position(3, "s", 0, i, n) for i in range(n)) == list(range(n))


def test_order_depends_on_seed_source_and_epoch() -> None:
    def order(seed: int, source: str, epoch: int) -> tuple[int, ...]:
        return tuple(position(seed, source, epoch, i, 200) for i in range(200))

    orders = {order(0, "a", 0), order(1, "a", 0), order(0, "b", 0), order(0, "a", 1), tuple(range(200))}
    assert len(orders) == 5
    assert order(0, "a", 0) == order(0, "a", 0)
    with pytest.raises(ValueError, match="position 5 is outside a source of 5"):
        position(0, "a", 0, 5, 5)


def test_order_is_fixed_for_all_time() -> None:
    """A saved run resumes on another machine and release: these numbers must never change."""
    assert [position(0, "s", 0, i, 10) for i in range(10)] == FIXED


def test_order_is_well_mixed() -> None:
    """First positions over many epochs are spread evenly: chi-square over 16 cells, 15 degrees of freedom."""
    n, epochs = 160, 1600
    cells = Counter(position(7, "s", e, 0, n) * 16 // n for e in range(epochs))
    assert sum((cells[c] - 100) ** 2 / 100 for c in range(16)) < 37.7  # 0.1% quantile


def test_every_variant_once_in_as_many_epochs() -> None:
    assert sorted(variant(1, "s", e, 5) % 4 for e in range(4)) == [0, 1, 2, 3]
    assert len({variant(1, "s", 0, i) % 2 for i in range(20)}) == 2


def test_mixture_stays_within_one_of_its_shares() -> None:
    rng = random.Random(0)
    for case in range(60):
        weights = {
            f"s{n}": rng.choice([rng.random() + 0.001, rng.randint(1, 9)]) for n in range(1 + case % 9)
        }
        mixture = Mixture(weights, seed=case)
        counts = dict.fromkeys(weights, 0)
        total = sum(weights.values())
        for k in range(1, 400):
            counts[mixture.next(counts)] += 1
            assert all(abs(counts[n] - k * w / total) < 1 for n, w in weights.items()), (case, k)


def test_mixture_refuses_nonsense() -> None:
    with pytest.raises(ConfigError, match="mixture is empty"):
        Mixture({}, 0)
    for weight in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="of source 'a' must be above 0"):
            Mixture({"a": weight}, 0)


def random_document(rng: random.Random, image_tokens: int) -> Rendered:
    """Text tokens are numbered 10, 11, ... so that each can be followed."""
    ids, images, cuts, k = [BOS], [0], [], 0
    for n in range(rng.randint(1, 8)):
        if n:
            cuts.append(len(ids))
        if rng.random() < 0.4:
            k += 1
            ids += [IS, *[IMG] * image_tokens, IE]
            images += [0, *[k] * image_tokens, 0]
        else:
            length = rng.randint(1, 60)
            ids += [10 + len(ids) + j for j in range(length)]
            images += [0] * length
    ids, images = np.array([*ids, EOS]), np.array([*images, 0])
    return Rendered(ids, (ids > 9) & (ids < 263), images, tuple(range(100, 100 + k)), tuple(cuts))


def test_split_covers_all_text_once_and_cuts_no_image() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        image_tokens = rng.randint(1, 12)
        row = rng.randint(image_tokens + 3, 60)
        document = random_document(rng, image_tokens)
        pieces = split(document, row, BOS)
        assert all(1 < len(p) <= row for p in pieces)
        assert all(p.input_ids[0] == BOS and not p.loss[0] for p in pieces)
        joined = np.concatenate([p.input_ids[1:] for p in pieces]).tolist()
        whole = document.input_ids[1:].tolist()
        assert joined in (whole, whole[:-1])  # a lone <eos> is not kept as a document
        for p in pieces:
            spans = np.bincount(p.image_ids, minlength=1)[1:].tolist()
            assert spans == [image_tokens] * len(p.images)
            for k in range(1, len(spans) + 1):
                at = np.flatnonzero(p.image_ids == k)
                assert at[-1] - at[0] == image_tokens - 1
                assert p.input_ids[at[0] - 1] == IS
                assert p.input_ids[at[-1] + 1] == IE
        assert [m for p in pieces for m in p.images] == list(document.images)


def test_split_prefers_segment_boundaries(bytes_tokenizer, make) -> None:
    document = render(make.document(1, paragraphs=4, pictures=0, length=5), bytes_tokenizer, 4, "answers")
    pieces = split(document, 70, BOS)
    ends = np.cumsum([len(p) - (n > 0) for n, p in enumerate(pieces)]).tolist()
    assert set(ends[:-1]) <= set(document.cuts)


def test_split_keeps_whole_leading_answers_of_a_dialogue(bytes_tokenizer, make) -> None:
    whole = render(make.dialogue(1, turns=6), bytes_tokenizer, 4, "answers")
    (piece,) = split(whole, 150, BOS)
    assert len(piece) <= 150
    assert piece.input_ids[-1] == bytes_tokenizer.end_id
    assert piece.input_ids.tolist() == whole.input_ids[: len(piece)].tolist()
    assert split(whole, 20, BOS) == []


def test_split_refuses_an_image_longer_than_a_row() -> None:
    ids = np.array([BOS, 10, IS, *[IMG] * 8, IE, EOS])
    document = Rendered(ids, ids == 10, (ids == IMG).astype(np.int64), (0,), (2,))
    with pytest.raises(ConfigError, match="an image span takes 10 tokens and <bos> one, a row has 10"):
        split(document, 10, BOS)
    assert len(split(document, 11, BOS)) == 2


def test_rows_fill_first_fit_and_close() -> None:
    def piece(n: int) -> Piece:
        ids = np.zeros(n, dtype=np.int64)
        return Piece(str(n), "s", 0, Rendered(ids, ids > 0, ids, ()))

    rows = Rows(2, 10)
    assert [rows.add(piece(n)) for n in (6, 7, 4, 3, 1)] == [True, True, True, True, False]
    assert [[p.sample_id for p in row] for row in rows.rows] == [["6", "4"], ["7", "3"]]
    assert rows.fill == 1.0
