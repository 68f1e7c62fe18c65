"""Which source each draw takes, in closed form: any range of draws at once, without those before it.

Draw j of a source stands at the time (j + phase) / share; the mixture is all sources' draws in the order of
their times.
"""

import bisect
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_pipeline.errors import ConfigError, DataError, nearest


@dataclass(frozen=True, eq=False)
class _Stretch:
    """Draws from `start` on, until the next source has given all it may.

    `taken`: int64[S], draws of each source before `start`. `share` and `phase`: float64[A] of the `active`.
    """

    start: int
    taken: np.ndarray
    active: np.ndarray
    share: np.ndarray
    phase: np.ndarray

    def times(self, k: np.ndarray | int, j: np.ndarray | int) -> np.ndarray:
        """When the `k`-th active source gives its draw `j` of this stretch."""
        time: np.ndarray = (j + self.phase[k]) / self.share[k]
        return time

    def before(self, time: float) -> np.ndarray:
        """int64[A]: draws of each active source whose time is less, exact to the last bit of `times`."""
        all_of = np.arange(len(self.active))
        count: np.ndarray = np.maximum(np.floor(time * self.share - self.phase).astype(np.int64) - 1, 0)
        while (more := self.times(all_of, count) < time).any():
            count += more
        return count

    def draws(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(active source, its draw's number), int64[stop - start]; all counted from this stretch's start."""
        # Sources together have given at least time - S and at most time + S draws (see Mixture).
        slack = len(self.active)
        first, last = self.before(start - slack), self.before(stop + slack)
        each = last - first
        k = np.repeat(np.arange(slack), each)
        j = np.arange(len(k)) - np.repeat(np.cumsum(each) - each - first, each)
        order = np.argsort(self.times(k, j), kind="stable")[start - first.sum() : stop - first.sum()]
        return k[order], j[order]


class Mixture:
    """Draws from sources in proportion to their weights.

    After any n draws since the last source left, each of S sources was taken within 1 + share x (S - 2) of
    n x share. For each source's count is off time x share by less than 1 at any time, and so the sum over
    the others moves the time at which n draws are reached by less than S - 1; the share of that is added.

    `weights` are shares of the draws, or of the tokens where `mean_tokens` (tokens per draw of each source)
    is given. `temperature` raises them to 1 / temperature first: above 1, small sources gain (as in mT5,
    2010.11934, section 3.1, whose alpha is 1 / temperature). A source leaves after `max_epochs` of it, and
    the others share what it took. `lengths`: samples of each source.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        seed: int,
        *,
        lengths: Mapping[str, int],
        mean_tokens: Mapping[str, float] | None = None,
        temperature: float = 1.0,
        max_epochs: Mapping[str, float] | None = None,
    ) -> None:
        _check(weights, lengths, mean_tokens)
        if not (math.isfinite(temperature) and temperature > 0):
            raise ConfigError(f"mixture: temperature {temperature} must be above 0")
        for name, epochs in (max_epochs or {}).items():
            if name not in weights:
                raise ConfigError(f"mixture: max_epochs names no source '{name}'{nearest(name, weights)}")
            _above_0("max_epochs", name, epochs)
        self.names = tuple(sorted(weights, key=lambda n: _tie(seed, n)))
        self.lengths = {n: lengths[n] for n in self.names}
        weight = {n: _tempered(weights[n], temperature) for n in self.names}
        if mean_tokens is not None:
            weight = {n: w / mean_tokens[n] for n, w in weight.items()}
        self._weight = np.array([weight[n] for n in self.names])
        caps = {n: max(1, math.floor(e * lengths[n])) for n, e in (max_epochs or {}).items()}
        self._caps = [caps.get(n) for n in self.names]
        self._stretches: list[_Stretch] = []
        self.total = self._lay_out()
        """Draws in all, None without end."""
        self._starts = [s.start for s in self._stretches]
        first = self._stretches[0]
        self.shares = {self.names[s]: float(x) for s, x in zip(first.active, first.share, strict=True)}
        """Of the draws, while all sources take part."""

    def draws(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(source: int64[n] into `names`, number: int64[n] of the draw within its source) of draws
        [start, stop), fewer at the mixture's end. Raises DataError where `start` is at or past the end."""
        if self.total is not None and start >= self.total:
            raise DataError(
                f"the mixture is at its end: all sources have given their max_epochs after {self.total:,} "
                f"draws.\n  Raise max_epochs, leave one source without it, or train fewer steps."
            )
        found = []
        for n in range(bisect.bisect_right(self._starts, start) - 1, len(self._stretches)):
            stretch = self._stretches[n]
            end = self._starts[n + 1] if n + 1 < len(self._starts) else self.total
            low, high = max(start, stretch.start), stop if end is None else min(stop, end)
            if low >= high:
                break
            k, j = stretch.draws(low - stretch.start, high - stretch.start)
            source = stretch.active[k]
            found.append((source, j + stretch.taken[source]))
        return np.concatenate([s for s, _ in found]), np.concatenate([j for _, j in found])

    def counts(self, n: int) -> dict[str, int]:
        """Draws of each source among the first `n`."""
        if self.total is not None:
            n = min(n, self.total)
        stretch = self._stretches[bisect.bisect_right(self._starts, n) - 1]
        counts, seen = stretch.taken.copy(), n - stretch.start
        time = seen - len(stretch.active)
        early = stretch.before(time)
        counts[stretch.active] += early
        rest, _ = stretch.draws(int(early.sum()), seen)
        np.add.at(counts, stretch.active[rest], 1)
        return dict(zip(self.names, counts.tolist(), strict=True))

    def _lay_out(self) -> int | None:
        """Fill the stretches; the number of draws in all, None without end."""
        taken, start = np.zeros(len(self.names), np.int64), 0
        while True:
            active = np.array(
                [s for s, cap in enumerate(self._caps) if cap is None or taken[s] < cap], np.int64
            )
            if not len(active):
                return start
            share = self._weight[active] / math.fsum(self._weight[active])
            phase = (np.arange(len(active)) + 0.5) / len(active)
            stretch = _Stretch(start, taken, active, share, phase)
            self._stretches.append(stretch)
            lasts = [
                (float(stretch.times(k, cap - 1 - taken[s])), k)
                for k, s in enumerate(active)
                if (cap := self._caps[s]) is not None
            ]
            if not lasts:
                return None
            time, leaves = min(lasts)
            given = stretch.before(time)
            # Draws at the very same time come in the order of the sources, up to the one that leaves.
            every = np.arange(len(active))
            given += (stretch.times(every, given) == time) & (every <= leaves)
            taken = taken.copy()
            taken[active] += given
            start += int(given.sum())


def _check(
    weights: Mapping[str, float], lengths: Mapping[str, int], mean_tokens: Mapping[str, float] | None
) -> None:
    if not weights:
        raise ConfigError("the mixture is empty: name at least one source")
    for name, weight in weights.items():
        if name not in lengths:
            raise ConfigError(
                f"mixture: no source '{name}'{nearest(name, lengths)} (open are {', '.join(lengths)})"
            )
        _above_0("weight", name, weight)
        if lengths[name] < 1:
            raise DataError(f"mixture: source '{name}' has no samples")
        if mean_tokens is not None and not mean_tokens[name] > 0:
            raise DataError(f"mixture: source '{name}' has no tokens to weigh it by")


def _above_0(what: str, name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"mixture: {what} {value} of source '{name}' must be above 0")


def _tempered(weight: float, temperature: float) -> float:
    """Twelve digits of the power: its last ones differ among platforms, and shares must not."""
    return weight if temperature == 1 else float(f"{weight ** (1 / temperature):.12g}")


def _tie(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
