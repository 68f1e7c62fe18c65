"""The index finds what a comparison of everything with everything finds."""

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.build.dedup import hamming
from data_pipeline.build.dedup.hamming import HammingIndex


def clustered(n: int, seed: int, most: int) -> np.ndarray:
    """Hashes of which many lie within `most` bits of one another."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, max(1, n // 8), np.uint64)
    hashes = centres[rng.integers(0, len(centres), n)]
    for _ in range(most):
        flip = rng.integers(0, 64, n).astype(np.uint64)
        hashes = np.where(rng.random(n) < 0.6, hashes ^ (np.uint64(1) << flip), hashes)
    return hashes


def naive(queries: np.ndarray, hashes: np.ndarray, distance: int) -> set[tuple[int, int, int]]:
    return {
        (q, n, d)
        for q, a in enumerate(queries.tolist())
        for n, b in enumerate(hashes.tolist())
        if (d := (a ^ b).bit_count()) <= distance
    }


@pytest.mark.parametrize("distance", [0, 3, 4, 7, 8, 11])
def test_every_neighbour_is_found_and_nothing_else(distance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "_TAIL", 64)
    monkeypatch.setattr(hamming, "_COMPARED", 50)
    hashes = clustered(900, distance, distance + 2)
    queries = np.concatenate((hashes[::9], clustered(20, 99, 3)))
    index = HammingIndex(distance)
    for start in range(0, len(hashes), 37):
        index.add(hashes[start : start + 37])
    assert len(index) == len(hashes)
    found = list(zip(*(x.tolist() for x in index.search(queries)), strict=True))
    assert found == sorted(naive(queries, hashes, distance))


def test_segments_on_disk_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "_TAIL", 64)
    hashes = clustered(1000, 5, 9)
    index = HammingIndex(8, tmp_path, segment=200)
    index.add(hashes)
    assert len(list(tmp_path.glob("hashes-*-0.npy"))) >= 4
    found = set(zip(*(x.tolist() for x in index.search(hashes[:50])), strict=True))
    assert found == naive(hashes[:50], hashes, 8)


def test_one_hash_in_many_copies_is_found_in_parts_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "_TAIL", 8)
    monkeypatch.setattr(hamming, "_COMPARED", 16)
    index = HammingIndex(2)
    index.add(np.full(100, 7, np.uint64))
    query, number, far = index.search(np.array([7, 7 ^ 1, 7 ^ 0xFF], np.uint64))
    assert np.bincount(query).tolist() == [100, 100]
    assert number.tolist() == [*range(100), *range(100)]
    assert set(far.tolist()) == {0, 1}


def test_an_empty_index_finds_nothing() -> None:
    assert [len(x) for x in HammingIndex(10).search(np.array([1], np.uint64))] == [0, 0, 0]
