"""The order of a source's samples: a seeded permutation for each epoch, with nothing to store.

A balanced Feistel network over the next power of four, walked until it lands inside: a bijection by
construction, without any library's random stream. The plural functions give what the singular ones give,
element by element, for whole arrays at once.
"""

import hashlib
from functools import lru_cache

import numpy as np

_ROUNDS = 6
_MASK = (1 << 64) - 1
_FRACTIONS = float(1 << 53)


def position(seed: int, source: str, epoch: int, i: int, n: int) -> int:
    """The index of the sample that comes `i`-th in this epoch of a source of `n` samples."""
    if not 0 <= i < n:
        raise ValueError(f"position {i} is outside a source of {n} samples")
    half = max(2, ((n - 1).bit_length() + 1) // 2)
    keys = _keys(seed, source, epoch)
    while True:
        i = _feistel(i, half, keys)
        if i < n:
            return i


def variant(seed: int, source: str, epoch: int, index: int) -> int:
    """Which of a sample's captions this epoch takes, before the modulo.

    A seeded start, then one further each epoch: n epochs show n captions once each.
    """
    return _mix(_keys(seed, source, -1)[0], index) % (1 << 31) + epoch


def chance(seed: int, source: str, epoch: int, index: int) -> float:
    """A number in [0, 1) of a sample in an epoch: what is taken at random for it compares with this."""
    first, second = _keys(seed, source, -2)[:2]
    return float(_mix(second, _mix(first, index) ^ epoch) >> 11) / _FRACTIONS


def positions(seed: int, source: str, epochs: np.ndarray, i: np.ndarray, n: int) -> np.ndarray:
    """int64[m]: `position` for each pair of (epochs, i), both int64[m]."""
    if len(i) and not 0 <= i.min() <= i.max() < n:
        raise ValueError(f"positions {i.min()} to {i.max()} are not all inside a source of {n} samples")
    half = max(2, ((n - 1).bit_length() + 1) // 2)
    different, which = np.unique(epochs, return_inverse=True)
    keys = np.array([_keys(seed, source, e) for e in different.tolist()], np.uint64).reshape(-1, _ROUNDS)
    found = i.astype(np.uint64)
    outside = np.arange(len(found))
    while len(outside):
        found[outside] = _feistels(found[outside], half, keys[which[outside]])
        outside = outside[found[outside] >= n]
    return found.astype(np.int64)


def variants(seed: int, source: str, epochs: np.ndarray, index: np.ndarray) -> np.ndarray:
    """int64[m]: `variant` for each pair of (epochs, index)."""
    key = np.uint64(_keys(seed, source, -1)[0])
    first: np.ndarray = (_mixes(key, index.astype(np.uint64)) % np.uint64(1 << 31)).astype(np.int64)
    first += epochs
    return first


def chances(seed: int, source: str, epochs: np.ndarray, index: np.ndarray) -> np.ndarray:
    """float64[m]: `chance` for each pair of (epochs, index)."""
    first, second = (np.uint64(k) for k in _keys(seed, source, -2)[:2])
    mixed = _mixes(second, _mixes(first, index.astype(np.uint64)) ^ epochs.astype(np.uint64))
    of_one: np.ndarray = (mixed >> np.uint64(11)).astype(np.float64) / _FRACTIONS
    return of_one


def _feistel(value: int, half: int, keys: tuple[int, ...]) -> int:
    mask = (1 << half) - 1
    left, right = value >> half, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(key, right) & mask)
    return (left << half) | right


def _feistels(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = values >> shift, values & mask
    for r in range(_ROUNDS):
        left, right = right, left ^ (_mixes(keys[:, r], right) & mask)
    return (left << shift) | right


def _mix(key: int, value: int) -> int:
    """64 bits that depend on every bit of both (multiply, fold the high half down, twice)."""
    x = (value ^ key) * 0x9E3779B97F4A7C15 & _MASK
    x = (x ^ (x >> 32)) * 0xD6E8FEB86659FD93 & _MASK
    return x ^ (x >> 32)


def _mixes(key: np.ndarray | np.uint64, values: np.ndarray) -> np.ndarray:
    """`_mix`: unsigned arithmetic of arrays wraps at 64 bits by itself."""
    x: np.ndarray = (values ^ key) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    x ^= x >> np.uint64(32)
    return x


@lru_cache(maxsize=1024)
def _keys(seed: int, source: str, epoch: int) -> tuple[int, ...]:
    digest = hashlib.blake2b(f"{seed}/{epoch}/{source}".encode(), digest_size=8 * _ROUNDS).digest()
    return tuple(int.from_bytes(digest[8 * r : 8 * r + 8], "little") for r in range(_ROUNDS))
