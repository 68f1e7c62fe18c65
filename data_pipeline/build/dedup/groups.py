"""Equal keys brought together on disk: a group-by for any number of records in little memory."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from blake3 import blake3

_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<i8")])
_PARTS = 256
_BUFFERED = 1 << 18  # records; 6 MiB


def key(*parts: str) -> bytes:
    """128 bits that stand for the parts, each taken with its length."""
    h = blake3()
    for part in parts:
        data = part.encode(errors="surrogatepass")
        h.update(len(data).to_bytes(8, "little"))
        h.update(data)
    return h.digest(length=16)


class Groups:
    """Numbers by key. Records go to 256 files by the key's first byte; each file is then sorted alone.

    Memory: a 256th of all records, 24 bytes each, and never less than the largest group.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._files = [folder / f"{part:02x}" for part in range(_PARTS)]
        for file in self._files:
            file.unlink(missing_ok=True)
        self._keys: list[bytes] = []
        self._numbers: list[int] = []

    def add(self, key: bytes, number: int) -> None:
        self._keys.append(key)
        self._numbers.append(number)
        if len(self._keys) >= _BUFFERED:
            self._flush()

    def repeated(self) -> Iterator[np.ndarray]:
        """int64[n], ascending, of every key that came n > 1 times; the order of keys is fixed. Reads once."""
        self._flush()
        for file in self._files:
            if not file.exists():
                continue
            records = np.fromfile(file, _RECORD)
            records = records[np.lexsort((records["number"], records["low"], records["high"]))]
            new = (np.diff(records["high"]) != 0) | (np.diff(records["low"]) != 0)
            edges = np.concatenate(([0], np.flatnonzero(new) + 1, [len(records)]))
            for k in np.flatnonzero(np.diff(edges) > 1):
                yield records["number"][edges[k] : edges[k + 1]]
            file.unlink()

    def _flush(self) -> None:
        if not self._keys:
            return
        records = np.empty(len(self._keys), _RECORD)
        halves = np.frombuffer(b"".join(self._keys), ">u8").reshape(-1, 2)
        records["high"], records["low"], records["number"] = halves[:, 0], halves[:, 1], self._numbers
        part = (records["high"] >> np.uint64(56)).astype(np.uint8)
        order = np.argsort(part, kind="stable")
        edges = np.searchsorted(part[order], np.arange(_PARTS + 1))
        for p in np.flatnonzero(np.diff(edges)):
            with self._files[p].open("ab") as f:
                f.write(records[order[edges[p] : edges[p + 1]]].tobytes())
        self._keys, self._numbers = [], []
