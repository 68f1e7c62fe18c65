"""Rows of the stream as columns of numbers, made into objects when somebody looks at them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from blake3 import blake3

from data_pipeline.stream.sizes import COSTS


@dataclass(frozen=True, slots=True)
class Placed:
    """A piece in a row. `images` counts tiles; `variant` and `piece` are numbers in the source's `Sizes`."""

    source: str
    index: int
    epoch: int
    variant: int
    piece: int
    tokens: int
    images: int
    patches: int


Row = tuple[Placed, ...]


@dataclass(frozen=True, eq=False)
class Pieces:
    """Pieces as columns: `source` int64[m] into names; `draw` int64[m]; `sizes` PIECE[m]; the rest as in
    `Placed`, int64[m]."""

    source: np.ndarray
    draw: np.ndarray
    index: np.ndarray
    epoch: np.ndarray
    variant: np.ndarray
    piece: np.ndarray
    sizes: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence["Pieces"]) -> "Pieces":
        return cls(
            *(np.concatenate(column) for column in zip(*(vars(p).values() for p in parts), strict=True))
        )

    def take(self, order: np.ndarray | slice) -> "Pieces":
        return Pieces(*(column[order] for column in vars(self).values()))


class Rows(Sequence[Row]):
    """Rows that are made when they are looked at: a rank looks at its own.

    `tokens`, `patches`: int64[rows], what each row holds, for `balance.assign`.
    """

    def __init__(self, names: tuple[str, ...], parts: Sequence[tuple[Pieces, np.ndarray]]) -> None:
        self._names = names
        self._pieces = Pieces.joined([p for p, _ in parts])
        lengths = np.concatenate([np.diff(starts) for _, starts in parts])
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        row = np.repeat(np.arange(len(lengths)), lengths)
        self.tokens = _sum(row, self._pieces.sizes["tokens"], len(lengths))
        self.patches = _sum(row, self._pieces.sizes["patches"], len(lengths))

    @property
    def digest(self) -> str:
        """Names which piece of which sample stands where: 32 hex digits."""
        p = self._pieces
        found = blake3(repr(self._names).encode())
        for column in (self._starts, p.source, p.index, p.epoch, p.variant, p.piece):
            found.update(np.ascontiguousarray(column, dtype="<i8").tobytes())
        return found.hexdigest(length=16)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, number: int) -> Row: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, number: int | slice) -> Row | tuple[Row, ...]:
        if isinstance(number, slice):
            return tuple(self[n] for n in range(*number.indices(len(self))))
        number = range(len(self))[number]
        p = self._pieces.take(slice(int(self._starts[number]), int(self._starts[number + 1])))
        names = [self._names[s] for s in p.source.tolist()]
        numbers = (p.index, p.epoch, p.variant, p.piece, *(p.sizes[n] for n in COSTS))
        return tuple(map(Placed, names, *(column.tolist() for column in numbers)))


def _sum(row: np.ndarray, cost: np.ndarray, rows: int) -> np.ndarray:
    """int64[rows]: what the pieces of each row cost together."""
    total = np.zeros(rows, np.int64)
    np.add.at(total, row, cost.astype(np.int64))
    return total
