"""Which samples made a step: from a loss spike to the URLs. Plans are pure, so the step is planned again."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import ConfigError, DataError, printable
from data_pipeline.stream.faults import BrokenSample
from data_pipeline.stream.loader import Stream
from data_pipeline.stream.tokens import Tokenizer
from trainer.config import Recipe, Stage
from trainer.stage_stream import open_datasets, open_stream


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One document of the step. `piece` counts from 0 where its sample was cut; `images` are tiles."""

    rank: int
    micro_batch: int
    row: int
    source: str
    index: int
    epoch: int
    piece: int
    id: str | None
    url: str | None
    tokens: int
    images: int
    patches: int


@dataclass(frozen=True, kw_only=True)
class Explained:
    """`fill`: share of the step's positions that hold a token. `recorded`: the run trained this very batch
    (None: it has no record of the step)."""

    step: int
    fill: float
    recorded: bool | None
    entries: tuple[Entry, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def explain(recipe: Recipe, stage: Stage, run_dir: Path, step: int, ranks: int) -> Explained:
    """What step `step` (counted from 1) of the stage is made of, on so many ranks.

    Raises DataError where the run recorded another batch: its recipe or its data were others.
    """
    if not 1 <= step <= stage.steps:
        raise ConfigError(f"--step {step}: stage '{stage.name}' has the steps 1 to {stage.steps}")
    stream = stream_before(recipe, stage, run_dir, step, ranks)
    plan, assigned = stream.upcoming()
    made_of = _metrics(run_dir / stage.name).get(step, {}).get("samples")
    if made_of not in (None, plan.rows.digest):
        raise DataError(
            f"{run_dir / stage.name} trained step {step} on other samples than this recipe and data give.\n"
            f"  Explain it with what it ran with:  {run_dir / 'recipe.resolved.yaml'}"
        )
    entries = []
    for rank, batches in enumerate(assigned.tolist()):
        for number, rows in enumerate(batches):
            for row in rows:
                for placed in plan.rows[row]:
                    sample_id, url = _head(stream, placed.source, placed.index)
                    entries.append(
                        Entry(
                            rank=rank,
                            micro_batch=number,
                            row=row,
                            source=placed.source,
                            index=placed.index,
                            epoch=placed.epoch,
                            piece=placed.piece,
                            id=sample_id,
                            url=url,
                            tokens=placed.tokens,
                            images=placed.images,
                            patches=placed.patches,
                        )
                    )
    recorded = None if made_of is None else True
    return Explained(step=step, fill=plan.fill, recorded=recorded, entries=tuple(entries))


def stream_before(recipe: Recipe, stage: Stage, run_dir: Path, step: int, ranks: int = 1) -> Stream:
    """The stage's stream, about to give `step`: from the nearest place that the run recorded."""
    tokenizer = Tokenizer.load(run_dir / recipe.backbones.path / "tokenizer")
    stream = open_stream(recipe, stage, run_dir, open_datasets(recipe, run_dir), tokenizer, world_size=ranks)
    recorded = _metrics(run_dir / stage.name)
    nearest = max((n for n, line in recorded.items() if n < step and "window" in line), default=0)
    if nearest:
        place = {key: recorded[nearest][key] for key in ("ledger", "window", "row")}
        stream.load_state_dict({**stream.state_dict(), **place, "step": nearest})
    stream.skip(step - 1 - nearest)
    return stream


def describe(explained: Explained) -> Iterator[str]:
    """As lines for the screen; text from data with its control characters spelt out."""
    yield (
        f"step {explained.step}: {len(explained.entries)} documents, "
        f"{sum(e.tokens for e in explained.entries):,} tokens, "
        f"{sum(e.patches for e in explained.entries):,} patches, rows {explained.fill:.1%} full"
        + (", as the run recorded" if explained.recorded else "")
    )
    yield "rank  micro  row  tokens  images  patches  source  id  url"
    for e in explained.entries:
        part = f" (part {e.piece + 1})" if e.piece else ""
        yield (
            f"{e.rank:4}  {e.micro_batch:5}  {e.row:3}  {e.tokens:6}  {e.images:6}  {e.patches:7}  "
            f"{e.source}  {printable(e.id or '(unreadable)')}{part}  {printable(e.url or '-')}"
        )


def _head(stream: Stream, source: str, index: int) -> tuple[str | None, str | None]:
    try:
        head = stream.sources[source].head(index)
    except BrokenSample:
        return None, None
    return head.id, head.url


def _metrics(stage_dir: Path) -> dict[int, dict[str, Any]]:
    """The run's lines by step; those that a kill cut short are passed over."""
    path = stage_dir / "metrics.jsonl"
    lines: dict[int, dict[str, Any]] = {}
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
                lines[line["step"]] = line
            except (ValueError, KeyError, TypeError):
                continue
    return lines
