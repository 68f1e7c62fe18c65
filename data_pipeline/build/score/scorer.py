"""What a scorer is, and how one is named. Quality and safety models are plug-ins of this one interface."""

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from data_pipeline.errors import ConfigError, PreflightError
from data_pipeline.sample import Sample


@dataclass(frozen=True)
class Score:
    """One value of one column: of a sample, or (with `media_id`) of one of its images.

    `segment` is the number of the text that the value speaks of, where it speaks of one.
    """

    column: str
    id: str
    media_id: str | None
    value: float
    segment: int | None = None


class Scorer(Protocol):
    """`columns`: all that it writes, each [a-z0-9_]+. What it cannot score it leaves out.

    `version` changes whenever values would: columns of another version are written again. Without
    `reads_images` the samples come without their bytes, and no pixel is read from disk.
    """

    name: str
    version: str
    columns: tuple[str, ...]
    reads_images: bool

    def score(self, samples: Sequence[Sample]) -> Iterable[Score]: ...


# By module and class: models need torch, which this package does not import.
_NAMED = {
    "text": "data_pipeline.build.score.text:TextScorer",
    "captions": "data_pipeline.build.score.text:CaptionScorer",
    "siglip": "trainer.scorers:SiglipScorer",
    "clip": "trainer.scorers:ClipScorer",
    "fovea": "trainer.scorers:FoveaScorer",
}


def load_scorer(spec: str) -> Scorer:
    """The scorer that the user names: NAME, NAME:PATH, MODULE:CLASS or MODULE:CLASS:ARGUMENT.

    A module named here is imported and runs: `spec` comes from the command line or the user's recipe,
    never from data. Raises ConfigError for what is no scorer, PreflightError where a package is missing.
    """
    head, _, argument = spec.partition(":")
    if head in _NAMED:
        module, _, name = _NAMED[head].partition(":")
    else:
        module, (name, _, argument) = head, argument.partition(":")
    if not name:
        raise ConfigError(f"scorer '{spec}': expected one of {', '.join(_NAMED)}, or MODULE:CLASS")
    try:
        made = getattr(importlib.import_module(module), name)
    except ImportError as e:
        raise PreflightError(f"scorer '{spec}' needs what is not installed here: {e}") from None
    except AttributeError:
        raise ConfigError(f"scorer '{spec}': module {module} has no '{name}'") from None
    try:
        scorer: Scorer = made(argument) if argument else made()
    except TypeError as e:
        needs = "takes no argument" if argument else f"is given with what it reads, as in {spec}:PATH"
        raise ConfigError(f"scorer '{spec}' {needs} ({str(e).rpartition('.')[2]})") from None
    if lacking := [
        a for a in ("name", "version", "columns", "reads_images", "score") if not hasattr(scorer, a)
    ]:
        raise ConfigError(f"scorer '{spec}' has no {lacking[0]}: it is no scorer")
    return scorer


def load_embedder(spec: str) -> Callable[[Sequence[Any]], np.ndarray]:
    """The image tower of a scorer that has one: PIL images to float32[n, d]. Raises as `load_scorer` does."""
    scorer = load_scorer(spec)
    if not callable(embed := getattr(scorer, "embed", None)):
        raise ConfigError(f"'{spec}' gives no embeddings of images; siglip:DIR and clip:DIR do")
    return cast(Callable[[Sequence[Any]], np.ndarray], embed)
