"""How sure a score is: bootstrap intervals, and the paired comparison of two sets of predictions.

Efron and Tibshirani 1993, chapters 13 and 16. Units, not samples, are drawn: two questions about one picture
are not independent (a cluster bootstrap). Every metric here is a function of sums over samples, so a resample
costs one weighted sum.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 1000
SEED = 0
CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Scored:
    """A metric over all samples, and what its intervals need."""

    values: dict[str, Any]
    """What is reported, in the official unit and rounding."""
    terms: Array
    """[samples, m]: what each sample adds to the m sums."""
    units: Sequence[Hashable]
    """The unit of each sample; samples of one unit are drawn together."""
    of_sums: Callable[[Array], dict[str, Array]]
    """[..., m] sums -> the values that get an interval, each [...]."""


def means(names: Sequence[str], scale: float = 1.0) -> Callable[[Array], dict[str, Array]]:
    """`of_sums` for plain means: a term each, and a last one that is 1."""
    return lambda sums: {name: scale * ratio(sums[..., i], sums[..., -1]) for i, name in enumerate(names)}


def ratio(above: Array, below: Array) -> Array:
    """above / below, and 0 where `below` is 0."""
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def intervals(scored: Scored) -> dict[str, list[float]]:
    """The 95 % percentile interval of every value: {"CIDEr": [low, high]}."""
    drawn = scored.of_sums(_resampled([scored.terms], scored.units)[0])
    return {name: _percentiles(values) for name, values in drawn.items()}


def compare(ours: Scored, theirs: Scored) -> dict[str, dict[str, Any]]:
    """Ours minus theirs on the same samples in the same order, both resampled alike.

    p is two-sided, for "no difference"; its smallest value is 2 / (RESAMPLES + 1).
    """
    if ours.terms.shape != theirs.terms.shape or list(ours.units) != list(theirs.units):
        raise ValueError("a paired comparison needs the same samples in the same order")
    ours_drawn, theirs_drawn = map(ours.of_sums, _resampled([ours.terms, theirs.terms], ours.units))
    ours_whole, theirs_whole = (ours.of_sums(s.terms.sum(axis=0)) for s in (ours, theirs))
    compared = {}
    for name, values in ours_drawn.items():
        differences = values - theirs_drawn[name]
        beyond = min((differences <= 0).sum(), (differences >= 0).sum())
        compared[name] = {
            "difference": float(ours_whole[name] - theirs_whole[name]),
            "interval_95": _percentiles(differences),
            "p": min(1.0, 2 * float(beyond + 1) / float(np.isfinite(differences).sum() + 1)),
        }
    return compared


def _resampled(terms: Sequence[Array], units: Sequence[Hashable]) -> list[Array]:
    """[RESAMPLES, m] sums for each of `terms`, over the same draws."""
    places: dict[Hashable, int] = {}
    place = np.array([places.setdefault(u, len(places)) for u in units])
    by_unit = []
    for samples in terms:
        grouped = np.zeros((len(places), samples.shape[1]))
        np.add.at(grouped, place, samples)
        by_unit.append(grouped)
    joined = np.concatenate(by_unit, axis=1)
    rng = np.random.default_rng(SEED)
    sums = np.empty((RESAMPLES, joined.shape[1]))
    for row in sums:
        drawn = rng.integers(0, len(places), len(places))
        row[:] = np.bincount(drawn, minlength=len(places)) @ joined
    return np.split(sums, np.cumsum([t.shape[1] for t in terms])[:-1], axis=1)


def _percentiles(values: Array) -> list[float]:
    tail = (1 - CONFIDENCE) / 2
    # A source of which nothing was drawn has no perplexity in that resample.
    return [float(v) for v in np.nanquantile(values, [tail, 1 - tail])]
