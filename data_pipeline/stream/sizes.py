"""How large every sample of a source is once rendered: tokens, tiles and patches of its pieces, on disk.

    magic | pieces: PIECE[P] | variants: uint64[V + 1] | samples: uint64[S + 1] or none | facts: JSON | tail

A variant's number holds its first piece (56 bits) and why it lost some or all of them (8 bits); a sample's is
its first variant, left out where all have as many. Only what is drawn is read, by offset: a mapped file would
count page by page as memory of this process, a hundred million samples as gigabytes.
"""

import contextlib
import json
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from blake3 import blake3

from data_pipeline.errors import DataError
from data_pipeline.manifest import commit

PIECE = np.dtype([("tokens", "<u4"), ("images", "<u2"), ("patches", "<u4")])
COSTS = ("tokens", "images", "patches")
VERSION = 1
_MAGIC = b"FOVEASIZ"
_TAIL = struct.Struct("<QII8s")  # bytes of the facts, their crc32, version, magic
_NUMBER = np.dtype("<u8")
_FRACTION = 16  # bits after the point of sums of means: whole numbers add up the same in any order

VariantSizes = tuple[Sequence[tuple[int, int, int]], str | None]
"""Of one variant: (tokens, images, patches) of its pieces, and why some or all are missing."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Sizes of consecutive samples: what a worker process sends back.

    `variants`: int64[S] of each sample; `pieces_of`: int64[V] pieces of each variant; `reasons`: uint8[V],
    0 or 1 + index into `phrases`; `pieces`: PIECE[P].
    """

    variants: np.ndarray
    pieces_of: np.ndarray
    reasons: np.ndarray
    phrases: tuple[str, ...]
    pieces: np.ndarray

    @classmethod
    def of(cls, samples: Iterable[Sequence[VariantSizes]]) -> "Chunk":
        samples = list(samples)
        flat = list(chain.from_iterable(samples))
        phrases = tuple(sorted({reason for _, reason in flat if reason is not None}))
        code = {reason: 1 + n for n, reason in enumerate(phrases)} | {None: 0}
        return cls(
            variants=np.array([len(s) for s in samples], np.int64),
            pieces_of=np.array([len(pieces) for pieces, _ in flat], np.int64),
            reasons=np.array([code[reason] for _, reason in flat], np.uint8),
            phrases=phrases,
            pieces=np.array([tuple(p) for pieces, _ in flat for p in pieces], PIECE),
        )


@dataclass(frozen=True, eq=False)
class Found:
    """Pieces of the variants asked for. `of`: int64[m], whose they are; `number`: int64[m], their number in
    the variant; `pieces`: PIECE[m]; `reasons`: uint8[n], 0 or 1 + index into `Sizes.reasons`."""

    of: np.ndarray
    number: np.ndarray
    pieces: np.ndarray
    reasons: np.ndarray


def write_sizes(path: Path, chunks: Iterable[Chunk], *, key: str, modes: int = 1) -> None:
    """Commit the sizes of a source whose samples come in order, in chunks of any length.

    `key` says what they are the sizes of (dataset, tokenizer, image, row, policy); whoever opens them says it
    again. With `modes` 2 each caption has two variants, whole pictures and split ones: variant number =
    caption x modes + mode. The memory used is that of a chunk.
    """
    with commit(path) as out, _beside(path) as variants, _beside(path) as samples:
        body = _Body(out, variants, samples, modes)
        for chunk in chunks:
            body.add(chunk)
        facts = body.close()
        page = json.dumps({**facts, "key": key}, sort_keys=True).encode()
        out.write(page)
        out.write(_TAIL.pack(len(page), zlib.crc32(page), VERSION, _MAGIC))


class Sizes:
    """The sizes of a source's samples, looked up by sample and variant, many at once.

    `modes`: see `write_sizes`. `reasons`: the phrases that reason codes point into. `usable`: samples with a
    piece to train on, in any variant.
    """

    def __init__(self, path: Path, facts: dict[str, Any], file: IO[bytes]) -> None:
        self._path, self._facts, self._file = path, facts, file
        self._samples, self._pieces, self._variants = facts["samples"], facts["pieces"], facts["variants"]
        self.key, self.modes, self.usable = facts["key"], facts["modes"], facts["usable"]
        self.reasons = tuple(facts["reasons"])
        self._variants_at = len(_MAGIC) + _padded(self._pieces * PIECE.itemsize)
        self._samples_at = self._variants_at + (self._variants + 1) * _NUMBER.itemsize

    @classmethod
    def open(cls, path: Path, key: str) -> "Sizes":
        """Raises DataError where the file is missing, not whole, of another release or of another key."""
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise DataError(f"sizes {path} are missing.\n  {_AGAIN}") from None
        except OSError as e:
            raise DataError(f"sizes {path} cannot be read: {e}.\n  {_AGAIN}") from None
        with contextlib.ExitStack() as stack:
            stack.callback(file.close)
            facts = _facts(path, file)
            if facts["key"] != key:
                raise DataError(
                    f"sizes {path} are those of another dataset, tokenizer or recipe: key {facts['key']!r}, "
                    f"this run has {key!r}.\n  {_AGAIN}"
                )
            stack.pop_all()
        return cls(path, facts, file)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Sizes.open, (self._path, self.key))

    def __len__(self) -> int:
        return int(self._samples)

    def mean_tokens(self, splitting: float = 0.0) -> float:
        """Tokens per draw: the mean over samples of the mean over their captions, unusable ones counted.
        `splitting`: how often pictures are split, where both modes are recorded."""
        means: list[float] = [t / (1 << _FRACTION) / max(1, self._samples) for t in self._facts["tokens"]]
        whole, *split = means
        return whole + splitting * (split[0] - whole) if split else whole

    def captions(self, index: np.ndarray) -> np.ndarray:
        """int64[n]: how many captions to choose from the samples `index` (int64[n]) have."""
        first, last = self._bounds(index)
        count: np.ndarray = (last - first) // self.modes
        return count

    def find(self, index: np.ndarray, variant: np.ndarray) -> Found:
        """The pieces of `variant[i]` of sample `index[i]`, both int64[n]. Raises DataError where the file
        contradicts itself."""
        here, after = self._pairs(self._variants_at, self._bounds(index)[0] + variant)
        first = (here >> np.uint64(8)).astype(np.int64)
        count = (after >> np.uint64(8)).astype(np.int64) - first
        reasons = (here & np.uint64(255)).astype(np.uint8)
        if (count < 0).any() or (first + count > self._pieces).any() or (reasons > len(self.reasons)).any():
            raise self._altered()
        of = np.repeat(np.arange(len(index)), count)
        number = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
        pieces = self._read(len(_MAGIC) + first * PIECE.itemsize, count * PIECE.itemsize)
        return Found(of, number, np.frombuffer(pieces, PIECE), reasons)

    def verify(self) -> None:
        """Read it all and raise DataError where a byte was altered."""
        body = _body_bytes(self._facts)
        digest = blake3()
        for start in range(0, body, 1 << 22):
            digest.update(os.pread(self._file.fileno(), min(1 << 22, body - start), start))
        if digest.hexdigest() != self._facts["digest"]:
            raise self._altered()

    def _bounds(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first variant of each sample, and the one after its last."""
        if each := self._facts["per_sample"]:
            return index * each, (index + 1) * each
        first, last = (n.astype(np.int64) for n in self._pairs(self._samples_at, index))
        if (last - first < self.modes).any() or (last > self._variants).any():
            raise self._altered()
        return first, last

    def _pairs(self, start: int, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The numbers `at` of the array that begins at byte `start`, and those after them."""
        size = _NUMBER.itemsize
        pairs = np.frombuffer(self._read(start + at * size, np.full(len(at), 2 * size)), _NUMBER).reshape(
            -1, 2
        )
        return pairs[:, 0], pairs[:, 1]

    def _read(self, offsets: np.ndarray, lengths: np.ndarray) -> bytes:
        file, read = self._file.fileno(), os.pread
        each = zip(lengths.tolist(), offsets.tolist(), strict=True)
        found = b"".join([read(file, length, offset) for length, offset in each if length])
        if len(found) != lengths.sum():
            raise self._altered()
        return found

    def _altered(self) -> DataError:
        return DataError(
            f"sizes {self._path} were altered: their contents contradict themselves.\n  {_AGAIN}"
        )


_AGAIN = "Delete the file: it is made again from the dataset."


class _Body:
    """The arrays of a sizes file while they are written: pieces to their place, the other two beside it."""

    def __init__(self, out: IO[bytes], variants: IO[bytes], samples: IO[bytes], modes: int) -> None:
        self._out, self._modes = _Digested(out), modes
        self._beside = (variants, samples)
        self._codes: dict[str, int] = {}
        self._samples = self._variants = self._pieces = self._usable = 0
        self._tokens = [0] * modes
        self._per_sample: set[int] = set()
        self._out.write(_MAGIC)

    def add(self, chunk: Chunk) -> None:
        short = chunk.variants < self._modes
        if short.any() or (chunk.variants % self._modes).any():
            raise ValueError(f"every sample has its variants in {self._modes} mode(s), one at least")
        codes = [0, *(self._codes.setdefault(p, 1 + len(self._codes)) for p in chunk.phrases)]
        if len(self._codes) > 255:
            raise ValueError("more than 255 reasons: they are closed phrases that hold no value")
        starts = np.cumsum(chunk.pieces_of) - chunk.pieces_of + self._pieces
        reasons = np.array(codes, np.uint64)[chunk.reasons]
        firsts = np.cumsum(chunk.variants) - chunk.variants + self._variants
        self._out.write(chunk.pieces.tobytes())
        self._beside[0].write((starts.astype(_NUMBER) << np.uint64(8) | reasons).astype(_NUMBER).tobytes())
        self._beside[1].write(firsts.astype(_NUMBER).tobytes())
        self._count(chunk)

    def _count(self, chunk: Chunk) -> None:
        sample = np.repeat(np.arange(len(chunk.variants)), chunk.variants)
        first = np.cumsum(chunk.variants) - chunk.variants
        mode = (np.arange(len(sample)) - first[sample]) % self._modes
        owner = np.repeat(np.arange(len(sample)), chunk.pieces_of)
        tokens = np.zeros(len(sample), np.int64)
        np.add.at(tokens, owner, chunk.pieces["tokens"].astype(np.int64))
        for m in range(self._modes):
            of_sample = np.zeros(len(chunk.variants), np.int64)
            np.add.at(of_sample, sample[mode == m], tokens[mode == m])
            self._tokens[m] += int(((of_sample << _FRACTION) // (chunk.variants // self._modes)).sum())
        self._usable += len(np.unique(sample[chunk.pieces_of > 0]))
        self._samples += len(chunk.variants)
        self._variants += len(sample)
        self._pieces += len(chunk.pieces)
        self._per_sample.update(np.unique(chunk.variants).tolist())

    def close(self) -> dict[str, Any]:
        size = self._pieces * PIECE.itemsize
        self._out.write(b"\0" * (_padded(size) - size))
        uniform = len(self._per_sample) == 1
        ends = (self._pieces << 8, self._variants)
        for file, end in list(zip(self._beside, ends, strict=True))[: 1 if uniform else 2]:
            file.write(np.array([end], _NUMBER).tobytes())
            file.seek(0)
            shutil.copyfileobj(file, self._out, 1 << 22)
        return {
            "samples": self._samples,
            "variants": self._variants,
            "pieces": self._pieces,
            "usable": self._usable,
            "modes": self._modes,
            "per_sample": self._per_sample.pop() if uniform else 0,
            "reasons": list(self._codes),
            "tokens": self._tokens,
            "digest": self._out.digest.hexdigest(),
        }


class _Digested:
    """A file that is digested as it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, blake3()

    def write(self, data: bytes) -> None:
        self.digest.update(data)
        self._file.write(data)


def _beside(path: Path) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=path.parent)


def _padded(size: int) -> int:
    """Up to a multiple of 8, for the numbers that follow."""
    return -(-size // 8) * 8


def _facts(path: Path, file: IO[bytes]) -> dict[str, Any]:
    """What the end of the file says of the rest, checked against its length."""
    broken = f"sizes {path} are not whole, or are no sizes.\n  {_AGAIN}"
    length = file.seek(0, os.SEEK_END)
    tail = os.pread(file.fileno(), _TAIL.size, max(0, length - _TAIL.size))
    if len(tail) < _TAIL.size or os.pread(file.fileno(), len(_MAGIC), 0) != _MAGIC:
        raise DataError(broken)
    size, crc, version, magic = _TAIL.unpack(tail)
    if magic != _MAGIC or size > length:
        raise DataError(broken)
    if version != VERSION:
        raise DataError(f"sizes {path}: version {version}, this release reads {VERSION}.\n  {_AGAIN}")
    page = os.pread(file.fileno(), size, max(0, length - _TAIL.size - size))
    if zlib.crc32(page) != crc:
        raise DataError(broken)
    facts: dict[str, Any] = json.loads(page)
    if _body_bytes(facts) + size + _TAIL.size != length:
        raise DataError(broken)
    return facts


def _body_bytes(facts: dict[str, Any]) -> int:
    """Bytes before the facts."""
    numbers = facts["variants"] + 1 + (0 if facts["per_sample"] else facts["samples"] + 1)
    return len(_MAGIC) + _padded(facts["pieces"] * PIECE.itemsize) + int(numbers) * _NUMBER.itemsize
