"""All 64-bit hashes within d bits of a query, exactly: multi-index hashing (Norouzi, Punjani, Fleet 2012).

Two hashes that differ in at most d of 64 bits differ in at most d // 4 bits of one of their four 16-bit
chunks. So a chunk's neighbours are looked up in a table, and only what is found there is compared in full.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

_CHUNKS = 4
_VALUES = 1 << 16
_TAIL = 1 << 12  # hashes that are compared one by one until they become a segment
_COMPARED = 1 << 20  # candidates held at once


class _Segment:
    """An immutable table over n hashes: for each chunk, the hashes ordered by its value."""

    def __init__(self, hashes: np.ndarray, first: int, file: Path | None):
        order = np.empty((_CHUNKS, len(hashes)), np.uint32)
        self.starts = np.zeros((_CHUNKS, _VALUES + 1), np.uint32)
        for c in range(_CHUNKS):
            values = _chunk(hashes, c)
            order[c] = np.argsort(values, kind="stable")
            np.cumsum(np.bincount(values, minlength=_VALUES), out=self.starts[c, 1:])
        self.first = first
        if file is not None:
            hashes, order = _mapped(file, hashes, order)
        self.hashes, self.order = hashes, order

    def __len__(self) -> int:
        return len(self.hashes)

    def candidates(self, queries: np.ndarray, masks: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(queries, places in the segment) that agree in a chunk up to one of the masks; with repeats."""
        for c in range(_CHUNKS):
            values = _chunk(queries, c)
            for mask in masks:
                near = values ^ mask
                start = self.starts[c, near].astype(np.int64)
                count = self.starts[c, near.astype(np.int64) + 1] - start
                for part in _parts(count):
                    n = count[part]
                    query = np.repeat(np.arange(len(queries))[part], n)
                    within = np.arange(len(query)) - np.repeat(np.cumsum(n) - n, n)
                    yield query, self.order[c, np.repeat(start[part], n) + within]


class HammingIndex:
    """Hashes are numbered as they are added. Without `folder` all stays in memory: 24 bytes a hash.

    With it, segments of `segment` hashes go to mapped files, and memory is bounded by one such segment.
    """

    def __init__(self, distance: int, folder: Path | None = None, segment: int = 1 << 22):
        if not 0 <= distance <= 15:
            raise ValueError(f"distance {distance}: the index looks up 0 to 15 bits")
        self.distance = distance
        self._folder = folder
        self._largest = segment
        self._segments: list[_Segment] = []
        self._tail = np.empty(0, np.uint64)
        bits = [1 << b for b in range(16)]
        self._masks = np.array(
            [sum(c) for r in range(distance // _CHUNKS + 1) for c in combinations(bits, r)], np.uint16
        )

    def __len__(self) -> int:
        return sum(map(len, self._segments)) + len(self._tail)

    def add(self, hashes: np.ndarray) -> None:
        """uint64[n], numbered from len(self) on."""
        self._tail = np.concatenate((self._tail, hashes.astype(np.uint64)))
        while len(self._tail) >= _TAIL:
            part = self._tail[: self._largest]
            self._tail = self._tail[self._largest :]
            first = sum(map(len, self._segments))
            # Merge with neighbours of about the same size: few segments, and few times sorted.
            while self._segments and len(self._segments[-1]) <= 4 * len(part):
                last = self._segments[-1]
                if len(last) + len(part) > self._largest or 2 * len(last) > self._largest:
                    break
                part = np.concatenate((last.hashes, part))
                first = last.first
                self._segments.pop()
            full = 2 * len(part) > self._largest
            file = self._folder / f"hashes-{first}" if full and self._folder is not None else None
            self._segments.append(_Segment(part, first, file))

    def search(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every (query int64[n], number int64[n], distance uint8[n]), ordered by query and number."""
        queries = queries.astype(np.uint64)
        found = []
        for segment in self._segments:
            for query, place in segment.candidates(queries, self._masks):
                found.append(self._near(query, place, queries, segment.hashes, segment.first))
        first = len(self) - len(self._tail)
        for start in range(0, len(queries) if len(self._tail) else 0, 256):
            far = np.bitwise_count(queries[start : start + 256, None] ^ self._tail)
            query, place = np.nonzero(far <= self.distance)
            found.append((query + start, place + first, far[query, place]))
        return _distinct(found)

    def _near(
        self, query: np.ndarray, place: np.ndarray, queries: np.ndarray, hashes: np.ndarray, first: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        far = np.bitwise_count(queries[query] ^ hashes[place])
        near = far <= self.distance
        return query[near], place[near].astype(np.int64) + first, far[near]


def _chunk(hashes: np.ndarray, c: int) -> np.ndarray:
    return (hashes >> np.uint64(16 * c)).astype(np.uint16)


def _parts(count: np.ndarray) -> Iterator[slice]:
    """Runs of queries whose candidates together stay below the bound (or of one query above it)."""
    total = np.cumsum(count)
    start = 0
    while start < len(count):
        before = total[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(total, before + _COMPARED, side="right")))
        if total[end - 1] > before:
            yield slice(start, end)
        start = end


def _distinct(found: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8)
    query, number, far = (np.concatenate(columns) for columns in zip(*found, strict=True))
    order = np.lexsort((number, query))
    query, number, far = query[order], number[order], far[order]
    new = np.ones(len(query), bool)
    new[1:] = (np.diff(query) != 0) | (np.diff(number) != 0)
    return query[new], number[new], far[new]


def _mapped(file: Path, *arrays: np.ndarray) -> list[np.ndarray]:
    file.parent.mkdir(parents=True, exist_ok=True)
    mapped = []
    for k, array in enumerate(arrays):
        path = file.with_name(f"{file.name}-{k}.npy")
        np.save(path, array)
        mapped.append(np.load(path, mmap_mode="r"))
    return mapped
