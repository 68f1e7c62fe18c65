"""The order of a source's samples: a seeded permutation for each epoch, computed one position at a time.

A balanced Feistel network over the next power of four, walked until it lands inside: a bijection by
construction, with nothing to store and no dependence on any library's random stream.
"""

import hashlib
from functools import lru_cache

_ROUNDS = 6
_MASK = (1 << 64) - 1


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


def _feistel(value: int, half: int, keys: tuple[int, ...]) -> int:
    mask = (1 << half) - 1
    left, right = value >> half, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(key, right) & mask)
    return (left << half) | right


def _mix(key: int, value: int) -> int:
    """64 bits that depend on every bit of both (multiply, fold the high half down, twice)."""
    x = (value ^ key) * 0x9E3779B97F4A7C15 & _MASK
    x = (x ^ (x >> 32)) * 0xD6E8FEB86659FD93 & _MASK
    return x ^ (x >> 32)


@lru_cache(maxsize=1024)
def _keys(seed: int, source: str, epoch: int) -> tuple[int, ...]:
    digest = hashlib.blake2b(f"{seed}/{epoch}/{source}".encode(), digest_size=8 * _ROUNDS).digest()
    return tuple(int.from_bytes(digest[8 * r : 8 * r + 8], "little") for r in range(_ROUNDS))
