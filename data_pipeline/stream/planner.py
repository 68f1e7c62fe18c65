"""Which pieces stand in which row of the stream: decided from recorded sizes, without a pixel or a token.

A window is a fixed number of consecutive draws of the mixture, packed by itself. The stream's rows are those
of window 0, 1, 2, ...; a step takes the next ones. So rows depend on neither ranks nor workers nor the batch
size, any window can be planned without those before it, and every rank finds the same plan for itself.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_pipeline.errors import ConfigError, DataError
from data_pipeline.stream.budget import Budget
from data_pipeline.stream.mixture import Mixture
from data_pipeline.stream.order import chances, positions, variants
from data_pipeline.stream.rows import Pieces, Rows
from data_pipeline.stream.sizes import COSTS, Sizes
from data_pipeline.stream.windows import pack

UNUSABLE_IN_A_ROW = 100  # of one window: a window knows nothing of the others
_ROWS = 256
"""Rows that a window is meant to give: the last ones of each are not full, so few windows fill better, but
nothing can be read before a whole window is planned."""
_DRAWS = (1 << 8, 1 << 15)


class Cursor(NamedTuple):
    """Where the stream stands, and all of its state: the next row."""

    window: int
    row: int


Skipped = tuple[str, int, str]
"""(source, index, reason) of a draw that gives nothing, or only a part of its sample."""


@dataclass(frozen=True, eq=False)
class Plan:
    """One global batch, and where the next one begins.

    `fill`: share of the batch's positions that hold a token. `skipped`: of the windows that begin in this
    batch, so that an unbroken run names each draw once.
    """

    rows: Rows
    after: Cursor
    fill: float
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, eq=False)
class _Window:
    """`pieces` in the order of rows; row r is pieces[starts[r] : starts[r + 1]]."""

    pieces: Pieces
    starts: np.ndarray
    skipped: tuple[Skipped, ...]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows(self, first: int, last: int) -> tuple[Pieces, np.ndarray]:
        starts = self.starts[first : last + 1]
        return self.pieces.take(slice(int(starts[0]), int(starts[-1]))), starts


class Planner:
    """Plans global batches. `splitting`: how often a sample's pictures are split, where sizes of both modes
    are recorded.

    Raises ConfigError or DataError where the mixture and the sizes do not belong together.
    """

    def __init__(
        self,
        sizes: Mapping[str, Sizes],
        mixture: Mixture,
        budget: Budget,
        seed: int,
        splitting: float = 0.0,
    ) -> None:
        if not 0 <= splitting <= 1:
            raise ConfigError(f"splitting is {splitting}, it is a share between 0 and 1")
        for name in mixture.names:
            _check(name, sizes.get(name), mixture.lengths[name])
        self._sizes = [sizes[name] for name in mixture.names]
        self._names, self._mixture, self._budget = mixture.names, mixture, budget
        self._seed, self._splitting = seed, splitting
        self.window = self._draws()
        """Draws in a window: of the recipe and the sizes alone."""
        self._last: tuple[int, _Window] | None = None

    def start(self) -> Cursor:
        return Cursor(0, 0)

    def plan(self, cursor: Cursor, global_rows: int) -> Plan:
        """The `global_rows` rows from `cursor` on.

        Raises DataError where 100 draws in a row give nothing to train on, where the mixture ends before the
        batch is full, and where sizes contradict the budget.
        """
        number, row = cursor
        parts: list[tuple[Pieces, np.ndarray]] = []
        skipped: list[Skipped] = []
        missing = global_rows
        while missing:
            window = self._window(number)
            if row > len(window):
                raise DataError(
                    f"window {number} has {len(window)} rows: cursor {cursor} is of another stream"
                )
            if row == 0:
                skipped += window.skipped
            last = min(len(window), row + missing)
            parts.append(window.rows(row, last))
            missing -= last - row
            number, row = (number + 1, 0) if last == len(window) else (number, last)
        rows = Rows(self._names, parts)
        fill = int(rows.tokens.sum()) / (global_rows * self._budget.tokens)
        return Plan(rows, Cursor(number, row), fill, tuple(skipped))

    def _draws(self) -> int:
        """Of a window: a power of two whose tokens fill some `_ROWS` rows."""
        shares = self._mixture.shares
        of_draw = sum(
            shares.get(name, 0.0) * sizes.mean_tokens(self._splitting)
            for name, sizes in zip(self._names, self._sizes, strict=True)
        )
        wanted = int(_ROWS * self._budget.tokens / max(1.0, of_draw))
        return min(max(1 << wanted.bit_length(), _DRAWS[0]), _DRAWS[1])

    def _window(self, number: int) -> _Window:
        if self._last is None or self._last[0] != number:
            self._last = (number, self._make(number))
        return self._last[1]

    def _make(self, number: int) -> _Window:
        source, draw = self._mixture.draws(number * self.window, (number + 1) * self.window)
        found = list(self._find(source, draw))
        usable = np.zeros(len(source), bool)
        skipped: list[tuple[int, Skipped]] = []
        for pieces, noted in found:
            usable[pieces.draw] = True
            skipped += noted
        skipped.sort()
        self._check_usable(usable, dict(skipped))
        pieces = Pieces.joined([p for p, _ in found])
        pieces = pieces.take(np.argsort(pieces.draw, kind="stable"))
        tokens, images, patches = (pieces.sizes[c].astype(np.int64) for c in COSTS)
        rows = pack(tokens, images, patches, self._budget)
        if rows:
            every = np.arange(len(rows))
            shuffled = positions(self._seed, "\0rows", np.full(len(rows), number), every, len(rows))
            rows = [rows[r] for r in shuffled.tolist()]
        starts = np.concatenate([[0], np.cumsum([len(r) for r in rows], dtype=np.int64)])
        order = np.array([p for r in rows for p in r], np.int64)
        return _Window(pieces.take(order), starts, tuple(s for _, s in skipped))

    def _find(
        self, source: np.ndarray, draw: np.ndarray
    ) -> Iterator[tuple[Pieces, list[tuple[int, Skipped]]]]:
        """The pieces of a window's draws, source by source, and (draw, what is left out of it)."""
        for s, (name, sizes) in enumerate(zip(self._names, self._sizes, strict=True)):
            at = np.flatnonzero(source == s)
            epoch, i = np.divmod(draw[at], len(sizes))
            index = positions(self._seed, name, epoch, i, len(sizes))
            variant = self._variant(name, sizes, epoch, index)
            found = sizes.find(index, variant)
            self._check_fit(name, found.pieces)
            of = found.of
            columns = (np.full(len(of), s), at[of], index[of], epoch[of], variant[of], found.number)
            noted = np.flatnonzero(found.reasons)
            reasons = [sizes.reasons[c - 1] for c in found.reasons[noted].tolist()]
            named = zip(at[noted].tolist(), index[noted].tolist(), reasons, strict=True)
            yield Pieces(*columns, found.pieces), [(d, (name, n, reason)) for d, n, reason in named]

    def _variant(self, name: str, sizes: Sizes, epoch: np.ndarray, index: np.ndarray) -> np.ndarray:
        caption: np.ndarray = variants(self._seed, name, epoch, index) % sizes.captions(index)
        if sizes.modes == 2:
            caption = caption * 2 + (chances(self._seed, name, epoch, index) < self._splitting)
        return caption

    def _check_fit(self, name: str, pieces: np.ndarray) -> None:
        for cost in COSTS:
            most = getattr(self._budget, cost)
            if len(pieces) and most is not None and (largest := int(pieces[cost].max())) > most:
                raise DataError(
                    f"the sizes of source '{name}' have a piece of {largest:,} {cost}, a row holds {most:,}: "
                    f"they were altered, or made for another row.\n  Delete the file: it is made again."
                )

    def _check_usable(self, usable: np.ndarray, skipped: Mapping[int, Skipped]) -> None:
        marks = np.concatenate([[-1], np.flatnonzero(usable), [len(usable)]])
        gaps = np.diff(marks) - 1
        if gaps.max() >= UNUSABLE_IN_A_ROW:
            last = int(marks[gaps.argmax()]) + UNUSABLE_IN_A_ROW
            name, index, reason = skipped.get(last, ("?", -1, "no reason recorded"))
            raise DataError(
                f"{UNUSABLE_IN_A_ROW} samples in a row give no target to train on, the last of them number "
                f"{index} of source '{name}': {reason}.\n"
                f"  Check the sources of the stage, its loss_on, and what a row may hold."
            )


def _check(name: str, sizes: Sizes | None, length: int) -> None:
    if sizes is None:
        raise ConfigError(f"no sizes of source '{name}', which the mixture names")
    if len(sizes) != length:
        raise DataError(
            f"the sizes of source '{name}' are those of {len(sizes):,} samples, it has {length:,}.\n"
            f"  Delete the file: it is made again."
        )
    if not sizes.usable:
        raise DataError(
            f"source '{name}' has no sample with a target to train on: {', '.join(sizes.reasons)}.\n"
            f"  Take it out of the mixture, or check loss_on and what a row may hold."
        )
