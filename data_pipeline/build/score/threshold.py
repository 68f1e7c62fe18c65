"""A threshold on a column: what it excludes, and what each threshold would keep. No shard is opened."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline.build.score.columns import read_column
from data_pipeline.errors import ConfigError
from data_pipeline.manifest import read_manifest
from data_pipeline.view import Exclusion, View

_RULE = re.compile(r"\s*([a-z0-9_]+)\s*(>=|<=|>|<)\s*(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*")
_OTHERWISE = {">=": "<", "<=": ">", ">": "<=", "<": ">="}


@dataclass(frozen=True)
class Rule:
    """What is kept, as in `clip>=0.28`."""

    column: str
    sign: str
    threshold: float

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """Raises ConfigError where the text is no rule."""
        if not (found := _RULE.fullmatch(text)):
            raise ConfigError(f"'{text}': expected COLUMN>=NUMBER (or >, <=, <), for instance 'clip>=0.28'")
        return cls(found.group(1), found.group(2), float(found.group(3)))

    @property
    def reason(self) -> str:
        return f"{self.column} {_OTHERWISE[self.sign]} {self.threshold:g}"

    def keeps(self, values: np.ndarray) -> np.ndarray:
        """float32[n] -> bool[n]. The threshold is compared in float32, as the scores are stored."""
        limit = np.float32(self.threshold)
        match self.sign:
            case ">=":
                return values >= limit
            case ">":
                return values > limit
            case "<=":
                return values <= limit
            case _:
                return values < limit


@dataclass(frozen=True)
class Yield:
    """What a threshold keeps, of all samples that have a score and are shown."""

    threshold: float
    samples: int
    images: int
    text_chars: int


def step_of(column: str) -> str:
    """The step under which the exclusions of a rule on this column are committed."""
    return f"filter-{column}".replace("_", "-")


def select(directory: Path, keep: str) -> Iterator[Exclusion]:
    """What the rule `keep` excludes: samples, or single images. What has no score stays."""
    rule = Rule.parse(keep)
    table = read_column(directory, rule.column)
    out = table.filter(pa.array(~rule.keeps(_values(table))))
    for row in out.select(["id", "media_id", "value"]).to_pylist():
        yield Exclusion(row["id"], row["media_id"], rule.reason, f"{rule.column} is {row['value']:.4g}")


def yield_curve(directory: Path, name: str, points: int = 10, *, step: str | None = None) -> list[Yield]:
    """The yield of `name >= t`, for t at `points` quantiles of the scores, the smallest first.

    Counted as exclusions act: an image leaves a document alone, but takes a caption or a dialogue with it.
    The exclusions of `step`, a threshold set before, are counted as if they were not there.
    """
    table = read_column(directory, name)
    view = View.open(directory, read_manifest(directory), leave_out=step)
    ids = table.column("id").to_pylist()
    media = table.column("media_id").to_pylist()
    shown = [
        i not in view.samples and m not in view.images.get(i, ()) for i, m in zip(ids, media, strict=True)
    ]
    table = table.filter(pa.array(shown, pa.bool_()))
    if table.num_rows == 0:
        return []
    values = _values(table)
    thresholds = np.unique(np.quantile(values, np.linspace(0, 1, max(2, points)), method="lower"))
    return [_yield(table, values, float(t)) for t in thresholds]


def _yield(table: pa.Table, values: np.ndarray, threshold: float) -> Yield:
    _, first, sample = np.unique(table.column("id").to_numpy(), return_index=True, return_inverse=True)
    images, chars, document = (table.column(c).to_numpy()[first] for c in ("images", "chars", "document"))
    of_image = table.column("media_id").is_valid().to_numpy()
    below = values < np.float32(threshold)
    gone_images = np.bincount(sample[below & of_image], minlength=len(first))
    whole = np.bincount(sample[below & ~of_image], minlength=len(first)) > 0
    emptied = (gone_images >= images) & (chars == 0)
    dropped = whole | ((gone_images > 0) & (~document | emptied))
    kept = ~dropped
    return Yield(
        threshold=threshold,
        samples=int(kept.sum()),
        images=int((images - gone_images)[kept].sum()),
        text_chars=int(chars[kept].sum()),
    )


def _values(table: pa.Table) -> np.ndarray:
    return table.column("value").to_numpy()
