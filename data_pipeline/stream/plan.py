"""Which documents stand in which row of a global batch: decided from token lengths, without a pixel.

A plan is a pure function of the cursor, so every rank finds the same one for itself and nothing is sent.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from data_pipeline.errors import ConfigError, DataError, nearest
from data_pipeline.sample import Sample
from data_pipeline.stream.chat import Unusable, Variant, caption_count, render
from data_pipeline.stream.order import position, variant
from data_pipeline.stream.pack import Piece, Rows
from data_pipeline.stream.source import Source
from data_pipeline.stream.split import split
from data_pipeline.stream.tokens import Tokenizer

UNUSABLE_IN_A_ROW = 100
_CACHED_TOKENS = 1 << 22
"""Tokens of rendered samples kept for the next epoch: some 100 MB."""


@dataclass(frozen=True)
class Cursor:
    """Where the stream stands: draws finished of each source, and pieces used of the draw that is open."""

    draws: Mapping[str, int]
    piece: int = 0


@dataclass(frozen=True, eq=False)
class Plan:
    """One global batch. `skipped` names what this batch's draws left out: (sample id, reason)."""

    rows: tuple[tuple[Piece, ...], ...]
    after: Cursor
    fill: float
    skipped: tuple[tuple[str, str], ...]

    @property
    def sample_ids(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(p.sample_id for p in row) for row in self.rows)


@dataclass(frozen=True, eq=False)
class _Draw:
    """A sample in pieces. `note` says why all or part of it is left out."""

    sample_id: str
    pieces: tuple[Piece, ...]
    note: str | None = None


class Planner:
    """Draws samples from the mixture and packs them."""

    def __init__(
        self,
        *,
        sources: Mapping[str, Source],
        weights: Mapping[str, float],
        tokenizer: Tokenizer,
        image_tokens: int,
        sequence_length: int,
        global_rows: int,
        loss_on: str,
        seed: int,
    ) -> None:
        for name in weights:
            if name not in sources:
                raise ConfigError(
                    f"mixture: no source '{name}'{nearest(name, sources)} (open are {', '.join(sources)})"
                )
        if image_tokens + 3 > sequence_length:
            raise ConfigError(
                f"an image span takes {image_tokens + 2} tokens and <bos> one, sequence_length is "
                f"{sequence_length}: raise it, or lower the image's tokens (image.side, connector)"
            )
        self._sources, self._tokenizer = sources, tokenizer
        self._image_tokens, self._length, self._rows = image_tokens, sequence_length, global_rows
        self._loss_on, self._seed = loss_on, seed
        self._mixture = Mixture(weights, seed)
        self._cache: OrderedDict[tuple[str, int], tuple[_Draw, ...]] = OrderedDict()
        self._cached_tokens = 0

    def start(self) -> Cursor:
        return Cursor(draws=dict.fromkeys(self._mixture.shares, 0))

    def plan(self, cursor: Cursor) -> Plan:
        """The global batch that begins at `cursor`.

        Raises DataError where 100 draws in a row give nothing to train on.
        """
        draws, first = dict(cursor.draws), cursor.piece
        rows = Rows(self._rows, self._length)
        skipped: list[tuple[str, str]] = []
        fruitless = 0
        while True:
            name = self._mixture.next(draws)
            draw = self._draw(name, draws[name])
            for n in range(first, len(draw.pieces)):
                if not rows.add(draw.pieces[n]):
                    packed = tuple(tuple(row) for row in rows.rows)
                    return Plan(packed, Cursor(draws, n), rows.fill, tuple(skipped))
            # Noted when the draw is finished: an open draw comes again in the next plan.
            if draw.note:
                skipped.append((draw.sample_id, draw.note))
            fruitless = 0 if draw.pieces else fruitless + 1
            if fruitless == UNUSABLE_IN_A_ROW:
                raise DataError(
                    f"{fruitless} samples in a row give no target to train on, the last of them "
                    f"{draw.sample_id} of source '{name}': {draw.note}.\n"
                    f"  Check the sources and loss_on ('{self._loss_on}') of the stage."
                )
            first = 0
            draws[name] += 1

    def _draw(self, name: str, number: int) -> _Draw:
        """Draw `number` (over all epochs) of a source, from the cache where it was rendered before."""
        source = self._sources[name]
        epoch, i = divmod(number, len(source))
        index = position(self._seed, name, epoch, i, len(source))
        wanted = variant(self._seed, name, epoch, index)
        draws = self._cache.get((name, index))
        if draws is None:
            draws = self._remember((name, index), self._render(name, index))
        self._cache.move_to_end((name, index))
        return draws[wanted % len(draws)]

    def _render(self, name: str, index: int) -> tuple[_Draw, ...]:
        """The sample in each of its variants."""
        sample = self._sources[name].without_pixels(index)
        try:
            count = caption_count(sample)
        except Unusable as e:
            return (_Draw(sample.id, (), e.reason),)
        return tuple(self._pieces(sample, name, index, v) for v in range(count))

    def _pieces(self, sample: Sample, name: str, index: int, wanted: int) -> _Draw:
        try:
            which = Variant(caption=wanted)
            tokens = render(sample, self._tokenizer, self._image_tokens, self._loss_on, which)
        except Unusable as e:
            return _Draw(sample.id, (), e.reason)
        parts = split(tokens, self._length, self._tokenizer.bos_id)
        pieces = tuple(Piece(sample.id, name, index, part) for part in parts if part.loss.any())
        if tokens.anchored and len(tokens) > self._length:
            return _Draw(sample.id, pieces, "longer than a row")
        return _Draw(sample.id, pieces, None if pieces else "no targets")

    def _remember(self, key: tuple[str, int], draws: tuple[_Draw, ...]) -> tuple[_Draw, ...]:
        self._cache[key] = draws
        self._cached_tokens += _size(draws)
        while self._cached_tokens > _CACHED_TOKENS and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._cached_tokens -= _size(dropped)
        return draws


def _size(draws: tuple[_Draw, ...]) -> int:
    """Tokens; an entry weighs something beside them."""
    return sum(64 + sum(len(p.tokens) for p in d.pieces) for d in draws)


class Mixture:
    """Draws from sources in proportion to their weights.

    After any number k of draws each source was taken within 1 of `k * share` (R. Tijdeman, "The chairman
    assignment problem", 1980). The choice depends on the counts so far and nothing else; the seed decides
    between equals.
    """

    def __init__(self, weights: Mapping[str, float], seed: int) -> None:
        if not weights:
            raise ConfigError("the mixture is empty: name at least one source")
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight > 0):
                raise ConfigError(f"mixture: weight {weight} of source '{name}' must be above 0")
        total = math.fsum(weights.values())
        tie = {n: hashlib.blake2b(f"{seed}/{n}".encode(), digest_size=8).digest() for n in weights}
        self.shares = {n: weights[n] / total for n in sorted(weights, key=tie.__getitem__)}

    def next(self, counts: Mapping[str, int]) -> str:
        """The source of the next draw after `counts` draws of each."""
        if len(self.shares) == 1:
            return next(iter(self.shares))
        k = sum(counts[name] for name in self.shares) + 1
        slack = 1 / (2 * len(self.shares) - 2)
        best, best_deadline = None, math.inf
        for name, share in self.shares.items():
            owed = share * k - counts[name]
            deadline = (1 - slack - owed) / share  # draws until this source would fall too far behind
            # The tolerance keeps an exact tie of sums from leaving nobody to choose.
            if owed >= slack - 1e-6 and deadline < best_deadline:
                best, best_deadline = name, deadline
        return best or max(self.shares, key=lambda n: self.shares[n] * k - counts[n])
