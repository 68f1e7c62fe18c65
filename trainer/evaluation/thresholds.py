"""What a stage's evaluation must reach before the next stage may start from it."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from data_pipeline.errors import nearest


class Threshold(BaseModel):
    """A plain number on the page is `min`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    min: float | None = Field(None, allow_inf_nan=False, description="at least")
    max: float | None = Field(None, allow_inf_nan=False, description="at most, as for a loss")

    @model_validator(mode="before")
    @classmethod
    def _spelt_out(cls, value: Any) -> Any:
        return {"min": value} if isinstance(value, int | float | str) else value

    @model_validator(mode="after")
    def _says_something(self) -> "Threshold":
        if self.min is None and self.max is None:
            raise ValueError("a threshold is a number (at least), or {min: ...}, {max: ...}")
        return self

    @model_serializer
    def _short(self) -> float | dict[str, float]:
        if self.max is None and self.min is not None:
            return self.min
        return {k: v for k, v in (("min", self.min), ("max", self.max)) if v is not None}

    def holds(self, value: float) -> bool:
        """False for what is not finite."""
        return (
            math.isfinite(value)
            and (self.min is None or value >= self.min)
            and (self.max is None or value <= self.max)
        )

    def __str__(self) -> str:
        ends = (("at least", self.min), ("at most", self.max))
        return " and ".join(f"{words} {end:g}" for words, end in ends if end is not None)


def scores_of(results: Path, digest: str) -> dict[str, float]:
    """`vqa.accuracy` of results.json, `scenes.folded` of scenes.json: all numbers that an evaluation of the
    checkpoint with that digest left in the directory. What is of another checkpoint, incomplete or damaged
    counts as not there."""
    found: dict[str, float] = {}
    for file in sorted(results.glob("*.json")):
        page = _page(file)
        if file.name == "results.json":
            found |= _numbers(page) if page.get("checkpoint") == digest else {}
        elif (page.get("checkpoint") or {}).get("digest") == digest and isinstance(page.get("scores"), dict):
            found |= _numbers({file.stem: page["scores"]})
    return found


def unmet(gate: Mapping[str, Threshold], scores: Mapping[str, float]) -> Iterator[str]:
    """A line for each threshold that is not reached; a metric that is not there reaches none."""
    for metric, threshold in gate.items():
        if metric not in scores:
            yield f"{metric}: not measured, needs {threshold}{nearest(metric, scores)}"
        elif not threshold.holds(scores[metric]):
            yield f"{metric}: {scores[metric]:.4g}, needs {threshold}"


def _page(file: Path) -> dict[str, Any]:
    try:
        page = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return page if isinstance(page, dict) else {}


def _numbers(page: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in page.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = float(value)
    return found
