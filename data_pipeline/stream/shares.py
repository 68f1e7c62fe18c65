"""How a stage mixes its sources, as a value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from data_pipeline.stream.mixture import Mixture
from data_pipeline.stream.sizes import Sizes


@dataclass(frozen=True, kw_only=True)
class Shares:
    """`weights` are shares of the draws, or with `by="tokens"` of the tokens; `temperature` and `max_epochs`
    as in `Mixture`."""

    weights: Mapping[str, float]
    by: Literal["samples", "tokens"] = "samples"
    temperature: float = 1.0
    max_epochs: Mapping[str, float] = field(default_factory=dict)

    def mixture(self, sizes: Mapping[str, Sizes], seed: int, splitting: float) -> Mixture:
        """Raises ConfigError where a weight names no source, DataError where a source is empty."""
        mean = {n: s.mean_tokens(splitting) for n, s in sizes.items()} if self.by == "tokens" else None
        return Mixture(
            self.weights,
            seed,
            lengths={n: len(s) for n, s in sizes.items()},
            mean_tokens=mean,
            temperature=self.temperature,
            max_epochs=self.max_epochs,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "weights": dict(sorted(self.weights.items())),
            "by": self.by,
            "temperature": self.temperature,
            "max_epochs": dict(sorted(self.max_epochs.items())),
        }
