"""Pack pieces into the rows of one global batch: first fit, closed by the first piece that fits nowhere."""

from dataclasses import dataclass

import numpy as np

from data_pipeline.stream.chat import Rendered


@dataclass(frozen=True, eq=False)
class Piece:
    """One document of a row, and where it comes from."""

    sample_id: str
    source: str
    index: int
    tokens: Rendered


class Rows:
    """`rows` rows of `length` tokens, being filled."""

    def __init__(self, rows: int, length: int) -> None:
        self.rows: list[list[Piece]] = [[] for _ in range(rows)]
        self.length = length
        self._free = np.full(rows, length)

    def add(self, piece: Piece) -> bool:
        """Put the piece into the first row with room. False: no row has any, and the batch is closed."""
        size = len(piece.tokens)
        row = int((self._free >= size).argmax())
        if self._free[row] < size:
            return False
        self.rows[row].append(piece)
        self._free[row] -= size
        return True

    @property
    def fill(self) -> float:
        """Share of the positions that hold a token."""
        return 1 - float(self._free.sum()) / (self.length * len(self.rows))
