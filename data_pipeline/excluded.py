"""What is left out of a dataset, and why, in sorted arrays: millions of entries at about 40 bytes each.

A dictionary of strings takes ten times as much, in every process that reads the dataset.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np

_AT_ONCE = 1 << 16
_BETWEEN = "\n"  # sample and image in one key; ids hold no line feed


class Reasons(Mapping[str, str]):
    """The reason of each key. Of a key that is given twice the first reason counts."""

    def __init__(self, found: Iterable[tuple[str, str]] = ()):
        numbers: dict[str, int] = {}
        given = iter(found)
        keys, of = [np.empty(0, "S1")], [np.empty(0, np.uint32)]
        while part := list(islice(given, _AT_ONCE)):
            keys.append(np.array([_bytes(key) for key, _ in part], "S"))
            of.append(np.array([numbers.setdefault(r, len(numbers)) for _, r in part], np.uint32))
        joined = np.concatenate(keys)
        del keys
        order = np.argsort(joined, kind="stable")  # so the first of two equal keys stays the first
        joined = joined[order]
        first = np.ones(len(joined), bool)
        first[1:] = joined[1:] != joined[:-1]
        self._keys = joined if first.all() else joined[first]
        self._of = np.concatenate(of)[order][first]
        self._reasons = tuple(numbers)

    def __getitem__(self, key: str) -> str:
        at = int(self._places([key])[0])
        if at < 0:
            raise KeyError(key)
        return self._reasons[int(self._of[at])]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and int(self._places([key])[0]) >= 0

    def __iter__(self) -> Iterator[str]:
        return (bytes(key).decode(errors="surrogatepass") for key in self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def among(self, keys: list[str]) -> np.ndarray:
        """bool[n]: which of `keys` have a reason."""
        return self._places(keys) >= 0

    def beginning(self, start: str) -> list[tuple[str, str]]:
        """(key, reason) of the keys that begin with `start`, a text that ends in no NUL."""
        raw = _bytes(start)
        if len(raw) > self._keys.itemsize:
            return []
        found = []
        for at in range(int(np.searchsorted(self._keys, np.array(raw, self._keys.dtype))), len(self._keys)):
            if not self._keys[at].startswith(raw):
                break
            found.append((self._keys[at].decode(errors="surrogatepass"), self._reasons[self._of[at]]))
        return found

    def _places(self, keys: list[str]) -> np.ndarray:
        """int64[n]: the number of each key; -1 where there is none."""
        if not len(self._keys):
            return np.full(len(keys), -1)
        width = self._keys.itemsize  # a longer key would be cut to it, or all keys copied to be as wide
        raw = [b if len(b) <= width else b"" for b in map(_bytes, keys)]
        wanted = np.array(raw, self._keys.dtype)
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where(self._keys[at] == wanted, at, -1)


class ImageReasons(Mapping[str, dict[str, str]]):
    """{media_id: reason} of each sample that lost images."""

    def __init__(self, found: Iterable[tuple[str, str, str]] = ()):
        self._of = Reasons((f"{key}{_BETWEEN}{media_id}", reason) for key, media_id, reason in found)

    def __getitem__(self, key: str) -> dict[str, str]:
        found = self._of.beginning(key + _BETWEEN)
        if not found:
            raise KeyError(key)
        return {both.split(_BETWEEN)[1]: reason for both, reason in found}

    def __iter__(self) -> Iterator[str]:
        last = None
        for both in self._of:
            key = both.split(_BETWEEN)[0]
            if key != last:
                yield key
            last = key

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return len(self._of) > 0


def _bytes(key: str) -> bytes:
    return key.encode(errors="surrogatepass")
