"""How long, how large, in which language, under which licence: counted over samples drawn from the shards.

No pixel is read. A dataset of up to `MOST` samples a source is counted whole.
"""

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from data_pipeline.build.look.draw import in_turn, rows, seen_places
from data_pipeline.build.score.columns import column_names, read_column
from data_pipeline.build.score.threshold import Yield, yield_curve
from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest
from data_pipeline.view import View

MOST = 5000  # samples of a source that are looked at
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_COLUMNS = [
    "id",
    "kind",
    "source",
    "url",
    "domain",
    "license",
    "lang",
    "segments",
    "media",
    "scores",
    "synthetic",
]
_CHARS = (0, 1, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)
_SIDES = (0, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_SHAPES = (0, 1 / 3, 1 / 2, 3 / 4, 0.95, 1.05, 4 / 3, 3 / 2, 2, 3)


@dataclass(frozen=True)
class Bar:
    label: str
    count: int


@dataclass(frozen=True)
class Quantiles:
    """`values[i]` is the quantile `QUANTILES[i]` of `count` numbers."""

    name: str
    count: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class Distributions:
    """Of `looked_at` samples out of `seen`. Counts of texts are in characters, of images in pixels."""

    seen: int
    looked_at: int
    kinds: tuple[Bar, ...]
    languages: tuple[Bar, ...]
    licences: dict[str, tuple[Bar, ...]]  # by source
    domains: tuple[Bar, ...]
    generators: tuple[Bar, ...]
    text_chars: tuple[Bar, ...]
    images: tuple[Bar, ...]
    longer_side: tuple[Bar, ...]
    shape: tuple[Bar, ...]
    by_source: dict[str, Quantiles]  # characters of a sample
    scores: tuple[Quantiles, ...]


@dataclass(frozen=True)
class Column:
    """A column of scores beside the shards: its quantiles and what thresholds on it would keep."""

    quantiles: Quantiles
    yields: tuple[Yield, ...]


def columns(directory: Path) -> list[Column]:
    """Every column that was scored and holds for the dataset as it is, without those that hold no score."""
    found = []
    for name in column_names(directory):
        with contextlib.suppress(
            DataError
        ):  # of shards that were built anew since: whoever uses it hears of it
            values = read_column(directory, name).column("value").to_numpy()
            if len(values):
                found.append(Column(_quantiles(name, values), tuple(yield_curve(directory, name))))
    return found


def distributions(directory: Path, manifest: Manifest, view: View, *, most: int = MOST) -> Distributions:
    """Counts over at most `most` samples of each source, drawn the same on every run."""
    shards = manifest.shards(format="arrow")
    places = seen_places(directory, shards, view, most=most, seed="distributions")
    drawn = in_turn(places, most * max(1, len(places)))
    counted = _Counted(view)
    for _, row in rows(directory, drawn, _COLUMNS):
        counted.add(row)
    seen = sum(s.samples for s in shards) - sum(
        split["samples"] for e in manifest.exclusions for by in e.counts.values() for split in by.values()
    )
    return counted.result(seen)


class _Counted:
    def __init__(self, view: View) -> None:
        self.view = view
        self.samples = 0
        self.kinds: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()
        self.domains: Counter[str] = Counter()
        self.generators: Counter[str] = Counter()
        self.licences: dict[str, Counter[str]] = {}
        self.chars: dict[str, list[int]] = {}
        self.images: Counter[int] = Counter()
        self.sides: list[tuple[int, int]] = []
        self.scores: dict[str, list[float]] = {}

    def add(self, row: dict[str, Any]) -> None:
        gone = self.view.images.get(row["id"], {})
        media = [m for m in row["media"] if m["media_id"] not in gone]
        self.samples += 1
        self.kinds[row["kind"]] += 1
        self.languages[row["lang"] or "not told"] += 1
        if domain := row["domain"] or _domain(row["url"]):
            self.domains[domain] += 1
        if row["synthetic"]:
            self.generators[row["synthetic"]["generator"] or "not named"] += 1
        self.licences.setdefault(row["source"], Counter())[row["license"] or "not stated"] += 1
        chars = sum(len(s["text"]) for s in row["segments"] if s["text"])
        self.chars.setdefault(row["source"], []).append(chars)
        self.images[len(media)] += 1
        self.sides += [(m["width"], m["height"]) for m in media if m["width"] and m["height"]]
        for score in row["scores"] or ():
            self.scores.setdefault(score["key"], []).append(score["value"])
        for m in media:
            for score in m["scores"] or ():
                self.scores.setdefault(f"{score['key']}, of an image", []).append(score["value"])

    def result(self, seen: int) -> Distributions:
        sides = np.array(self.sides, np.float64).reshape(-1, 2)
        chars = [n for of in self.chars.values() for n in of]
        return Distributions(
            seen=seen,
            looked_at=self.samples,
            kinds=_bars(self.kinds),
            languages=_bars(self.languages, 12),
            licences={s: _bars(c, 8) for s, c in sorted(self.licences.items())},
            domains=_bars(self.domains, 15),
            generators=_bars(self.generators, 10),
            text_chars=_histogram(chars, _CHARS),
            images=_images(self.images),
            longer_side=_histogram(sides.max(axis=1), _SIDES),
            shape=_histogram(sides[:, 0] / sides[:, 1], _SHAPES, _shape),
            by_source={s: _quantiles(s, of) for s, of in sorted(self.chars.items())},
            scores=tuple(_quantiles(name, of) for name, of in sorted(self.scores.items())),
        )


def _bars(counts: Counter[str], most: int | None = None) -> tuple[Bar, ...]:
    """Largest first; what is beyond `most` in one bar."""
    ordered = sorted(counts.items(), key=lambda c: (-c[1], c[0]))
    cut = len(ordered) if most is None or len(ordered) <= most else most - 1
    bars = [Bar(label, n) for label, n in ordered[:cut]]
    if rest := ordered[cut:]:
        bars.append(Bar(f"{len(rest)} others", sum(n for _, n in rest)))
    return tuple(bars)


def _images(counts: Counter[int]) -> tuple[Bar, ...]:
    if not counts:
        return ()
    most = 10
    bars = [Bar(str(n), counts[n]) for n in range(min(max(counts, default=0), most - 1) + 1)]
    if more := sum(n for images, n in counts.items() if images >= most):
        bars.append(Bar(f"{most}+", more))
    return tuple(bars)


def _histogram(values: Any, edges: Sequence[float], name: Any = None) -> tuple[Bar, ...]:
    """Counts between edges, the last bin open above; empty bins at both ends left out."""
    values = np.asarray(values, np.float64)
    if not len(values):
        return ()
    counts, _ = np.histogram(values, [*edges, np.inf])
    filled = np.flatnonzero(counts)
    labels = name or _from
    return tuple(Bar(labels(edges, i), int(counts[i])) for i in range(int(filled[0]), int(filled[-1]) + 1))


def _from(edges: Sequence[float], i: int) -> str:
    if i + 1 == len(edges):
        return f"{edges[i]:,.0f}+"
    low, high = edges[i], edges[i + 1] - 1
    return f"{low:,.0f}" if low == high else f"{low:,.0f}-{high:,.0f}"


def _shape(edges: Sequence[float], i: int) -> str:
    """Width to height."""
    names = (
        "below 1:3",
        "from 1:3",
        "from 1:2",
        "from 3:4",
        "square",
        "up to 4:3",
        "to 3:2",
        "to 2:1",
        "to 3:1",
    )
    return names[i] if i < len(names) else "above 3:1"


def _quantiles(name: str, values: Any) -> Quantiles:
    found = np.quantile(np.asarray(values, np.float64), QUANTILES)
    return Quantiles(name, len(values), tuple(float(v) for v in found))


def _domain(url: str | None) -> str | None:
    """The host of an http(s) address; what names a local file has none."""
    try:
        parts = urlsplit(url or "")
        return parts.hostname if parts.scheme in ("http", "https") else None
    except ValueError:
        return None
