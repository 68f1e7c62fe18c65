"""Recorded sizes come back as they were written, and a file that is not whole is refused."""

import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.stream.sizes import Chunk, Sizes, write_sizes

piece = st.tuples(st.integers(1, 2**32 - 1), st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1))
variant = st.tuples(
    st.lists(piece, max_size=3), st.sampled_from([None, "no targets", "longer than a row", "no text"])
)


def samples_of(modes: int):
    captions = st.integers(1, 3).flatmap(lambda n: st.lists(variant, min_size=n * modes, max_size=n * modes))
    return st.lists(captions, min_size=1, max_size=12)


@settings(max_examples=60)
@given(st.data(), st.sampled_from([1, 2]))
def test_what_is_written_is_found(tmp_path_factory, data, modes):
    samples = data.draw(samples_of(modes))
    path = tmp_path_factory.mktemp("sizes") / "s.sizes"
    cut = data.draw(st.integers(0, len(samples)))
    write_sizes(path, [Chunk.of(samples[:cut]), Chunk.of(samples[cut:])], key="k", modes=modes)
    sizes = Sizes.open(path, "k")
    sizes.verify()
    assert len(sizes) == len(samples)
    assert sizes.usable == sum(any(pieces for pieces, _ in s) for s in samples)
    assert sizes.captions(np.arange(len(samples))).tolist() == [len(s) // modes for s in samples]
    asked = [(i, v) for i, s in enumerate(samples) for v in range(len(s))]
    data.draw(st.randoms()).shuffle(asked)
    found = sizes.find(np.array([i for i, _ in asked]), np.array([v for _, v in asked]))
    wanted = [(q, n, p) for q, (i, v) in enumerate(asked) for n, p in enumerate(samples[i][v][0])]
    assert found.of.tolist() == [q for q, _, _ in wanted]
    assert found.number.tolist() == [n for _, n, _ in wanted]
    assert [tuple(p) for p in found.pieces.tolist()] == [p for _, _, p in wanted]
    reasons = [None if c == 0 else sizes.reasons[c - 1] for c in found.reasons.tolist()]
    assert reasons == [samples[i][v][1] for i, v in asked]
    for splitting in (0.0, 0.25):
        assert sizes.mean_tokens(splitting) == pytest.approx(float(mean(samples, modes, splitting)), rel=1e-4)


def mean(samples, modes: int, splitting: float) -> Fraction:
    """Tokens of a draw, summed over all that can happen."""
    odds = [Fraction(1)] if modes == 1 else [1 - Fraction(splitting), Fraction(splitting)]
    total = Fraction(0)
    for s in samples:
        for number, (pieces, _) in enumerate(s):
            total += odds[number % modes] * Fraction(sum(t for t, _, _ in pieces), len(s) // modes)
    return total / len(samples)


def written(path, chunks=None, key="k"):
    samples = [[([(10 + n, 1, 4)], None)] * (1 + n % 2) for n in range(16)]
    write_sizes(path, chunks or [Chunk.of(samples)], key=key)
    return samples


def test_the_same_bytes_however_they_are_cut(tmp_path):
    samples = written(tmp_path / "one")
    write_sizes(tmp_path / "many", [Chunk.of([s]) for s in samples], key="k")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "many").read_bytes()


def test_a_table_is_smaller_where_all_samples_have_as_many_variants(tmp_path):
    write_sizes(tmp_path / "even", [Chunk.of([[([(5, 0, 0)], None)]] * 100)], key="k")
    write_sizes(tmp_path / "uneven", [Chunk.of([[([(5, 0, 0)], None)]] * 99 + [[([], "x")] * 2])], key="k")
    assert (tmp_path / "even").stat().st_size < (tmp_path / "uneven").stat().st_size - 700


def test_sizes_travel_to_another_process(tmp_path):
    written(tmp_path / "s")
    sizes = pickle.loads(pickle.dumps(Sizes.open(tmp_path / "s", "k")))
    assert sizes.find(np.array([3]), np.array([0])).pieces.tolist() == [(13, 1, 4)]


def test_sizes_of_something_else_are_refused(tmp_path):
    written(tmp_path / "s", key="dataset 1")
    with pytest.raises(DataError, match="key 'dataset 1', this run has 'dataset 2'"):
        Sizes.open(tmp_path / "s", "dataset 2")


def test_missing_empty_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="are missing"):
        Sizes.open(tmp_path / "none", "k")
    (tmp_path / "empty").touch()
    with pytest.raises(DataError, match="are not whole, or are no sizes"):
        Sizes.open(tmp_path / "empty", "k")
    with pytest.raises(DataError, match="cannot be read"):
        Sizes.open(tmp_path, "k")
    (tmp_path / "text").write_text("nothing of the sort " * 99)
    with pytest.raises(DataError, match="are not whole, or are no sizes"):
        Sizes.open(tmp_path / "text", "k")


def test_a_file_cut_anywhere_is_refused(tmp_path):
    written(tmp_path / "s")
    whole = (tmp_path / "s").read_bytes()
    for length in [*range(1, len(whole), 5), len(whole) - 1]:
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(DataError, match="are not whole"):
            Sizes.open(tmp_path / "cut", "k")
    (tmp_path / "other").write_bytes(b"PNG" + whole[3:])
    with pytest.raises(DataError, match="are not whole"):
        Sizes.open(tmp_path / "other", "k")
    (tmp_path / "longer").write_bytes(whole[:100] + b"12345678" + whole[100:])
    with pytest.raises(DataError, match="are not whole"):
        Sizes.open(tmp_path / "longer", "k")


def test_another_version_is_refused_by_its_number(tmp_path):
    written(tmp_path / "s")
    whole = bytearray((tmp_path / "s").read_bytes())
    whole[-12] = 9
    (tmp_path / "s").write_bytes(whole)
    with pytest.raises(DataError, match="version 9, this release reads 1"):
        Sizes.open(tmp_path / "s", "k")


def test_every_altered_byte_is_noticed(tmp_path):
    """At opening where it is in the facts, by `verify` anywhere."""
    written(tmp_path / "s")
    whole = (tmp_path / "s").read_bytes()
    for at in range(0, len(whole), 3):
        (tmp_path / "altered").write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(DataError, match=r"altered|not whole|version"):
            Sizes.open(tmp_path / "altered", "k").verify()


def test_numbers_that_point_nowhere_are_noticed_when_looked_up(tmp_path):
    written(tmp_path / "s")
    whole = (tmp_path / "s").read_bytes()
    pieces = 8 + -(-24 * 10 // 8) * 8  # magic, pieces
    samples = pieces + 25 * 8
    of_variant, of_sample = pieces + 8 * 5, samples + 8 * 4
    end = pieces + 8 * 24 + 1
    for at, byte, index in (
        (of_variant, 255, 3),  # a reason that has no phrase
        (of_variant + 6, 255, 3),  # a first piece far beyond the file
        (end, 30, 15),  # a last piece beyond the pieces, inside the file
        (of_sample + 5, 255, 3),  # a last variant far beyond the file
        (of_sample, 20, 4),  # a first variant after the last one
    ):
        (tmp_path / "s").write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
        with pytest.raises(DataError, match="their contents contradict themselves"):
            Sizes.open(tmp_path / "s", "k").find(np.array([index]), np.array([1]))


def test_a_writer_that_fails_leaves_no_file(tmp_path):
    def chunks():
        yield Chunk.of([[([(5, 0, 0)], None)]])
        raise RuntimeError("the worker died")

    with pytest.raises(RuntimeError):
        write_sizes(tmp_path / "s", chunks(), key="k")
    assert list(tmp_path.iterdir()) == []


def test_every_sample_has_its_variants_in_all_modes(tmp_path):
    for variants in ([], [([], "x")] * 3):
        with pytest.raises(ValueError, match=r"in 2 mode\(s\)"):
            write_sizes(tmp_path / "s", [Chunk.of([variants])], key="k", modes=2)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path):
    written(tmp_path / "s")
    sizes = Sizes.open(tmp_path / "s", "k")
    with (tmp_path / "s").open("r+b") as f:
        f.truncate(100)
    with pytest.raises(DataError, match="altered"):
        sizes.find(np.array([15]), np.array([0]))


def test_reasons_are_closed_phrases(tmp_path):
    chunks = [Chunk.of([[([], f"too long by {n}")] for n in range(first, first + 128)]) for first in (0, 128)]
    with pytest.raises(ValueError, match="more than 255 reasons"):
        write_sizes(tmp_path / "s", chunks, key="k")
