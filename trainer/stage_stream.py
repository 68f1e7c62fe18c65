"""A stage's stream of batches: from recipe and datasets to sizes, mixture and rows. No model, no engine."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from data_pipeline.stream.budget import Budget
from data_pipeline.stream.datasets import Datasets
from data_pipeline.stream.loader import Stream
from data_pipeline.stream.measure import sizes_of
from data_pipeline.stream.rendering import Rendering
from data_pipeline.stream.shards.opened import Shards
from data_pipeline.stream.shares import Shares
from data_pipeline.stream.sizes import Sizes
from data_pipeline.stream.source import Source
from data_pipeline.stream.tokens import Tokenizer
from trainer.config import Recipe, Stage

_SAY_EVERY_S = 10.0


def open_datasets(recipe: Recipe, run_dir: Path) -> Datasets:
    """The recipe's datasets. That a shard is whole is proven once for all processes of a machine."""
    proofs = run_dir / recipe.data.sizes / "proofs"
    return Datasets.read(recipe.data.datasets, base=run_dir, shards=Shards(proofs))


def rendering_of(recipe: Recipe, stage: Stage, tokenizer: Tokenizer) -> Rendering:
    """How the stage turns a sample into pieces of rows."""
    model = recipe.model_of(stage)
    return Rendering(
        tokenizer=tokenizer,
        image=model.image,
        image_tokens=model.image_tokens,
        loss_on=stage.loss_on,
        budget=Budget(
            tokens=stage.sequence_length, images=stage.images_per_row, patches=stage.patches_per_row
        ),
        overlong=stage.overlong,
        splitting=stage.splitting,
        shuffle_turns=stage.shuffle_turns,
    )


def shares_of(stage: Stage) -> Shares:
    return Shares(
        weights={n: s.weight for n, s in stage.mixture.items()},
        by=stage.mixture_by,
        temperature=stage.temperature,
        max_epochs={n: s.max_epochs for n, s in stage.mixture.items() if s.max_epochs is not None},
    )


def measure(
    recipe: Recipe,
    stage: Stage,
    run_dir: Path,
    datasets: Datasets,
    tokenizer: Tokenizer,
    workers: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, Source], dict[str, Sizes]]:
    """The stage's sources and the sizes of their samples, measured where nobody did before.

    `workers`: processes that measure (None: this machine's cores, shared among the ranks on it).
    """
    rendering = rendering_of(recipe, stage, tokenizer)
    directory = run_dir / recipe.data.sizes
    sources = {name: datasets.source(name, "train") for name in stage.mixture}
    sizes = {
        name: sizes_of(
            source, rendering, directory, workers or len(os.sched_getaffinity(0)), _Said(name, say)
        )
        for name, source in sources.items()
    }
    return sources, sizes


def open_stream(
    recipe: Recipe,
    stage: Stage,
    run_dir: Path,
    datasets: Datasets,
    tokenizer: Tokenizer,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> Stream:
    """The stage's mixture over the training split."""
    sources, sizes = measure(recipe, stage, run_dir, datasets, tokenizer)
    return Stream(
        sources=sources,
        sizes=sizes,
        shares=shares_of(stage),
        rendering=rendering_of(recipe, stage, tokenizer),
        global_rows=stage.global_batch,
        micro_rows=stage.micro_batch,
        rank=rank,
        world_size=world_size,
        seed=recipe.seed,
        data_digest=datasets.digest,
        workers=recipe.data.workers,
        prefetch_bytes=int(recipe.data.prefetch_gib * 2**30),
        skipped_file=run_dir / stage.name / "skipped.jsonl",
    )


class _Said:
    """Progress of a source in a line now and then."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self._name, self._say, self._last = name, say, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._last > _SAY_EVERY_S:
            self._last = time.monotonic()
            self._say(f"measuring {self._name}  {done:,} of {total:,} samples")
