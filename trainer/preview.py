"""Packed rows of a step as a page: planned as training plans them, made as its workers make them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from data_pipeline.batch import Batch
from data_pipeline.errors import ConfigError
from data_pipeline.manifest import commit
from data_pipeline.stream.making import Maker
from data_pipeline.stream.rendering import Rendering
from data_pipeline.stream.rows import Row
from data_pipeline.stream.show.page import Origin, PackedRow, Step, rows_page
from data_pipeline.stream.tokens import Tokenizer
from trainer.config import Recipe, Stage
from trainer.explain import stream_before
from trainer.models.masks import MaskKind, allowed, dense_mask, full_blocks
from trainer.stage_stream import rendering_of


@dataclass(frozen=True)
class Previewed:
    """How many rows the page shows, and of how many."""

    shown: int
    planned: int


def preview(
    recipe: Recipe, stage: Stage, run_dir: Path, out: Path, *, step: int = 1, rows: int = 8, ranks: int = 1
) -> Previewed:
    """Write the first `rows` rows that rank 0 of so many gets in step `step` (counted from 1) to `out`.

    Only the micro-batches that hold them are made, and nothing is written into the run but sizes that nobody
    measured before.
    """
    if not 1 <= step <= stage.steps:
        raise ConfigError(f"--step {step}: stage '{stage.name}' has the steps 1 to {stage.steps}")
    stream = stream_before(recipe, stage, run_dir, step, ranks)
    plan, assigned = stream.upcoming()
    tokenizer = Tokenizer.load(run_dir / recipe.backbones.path / "tokenizer")
    rendering = rendering_of(recipe, stage, tokenizer)
    maker = Maker(stream.sources, rendering, recipe.seed)
    left_out = Counter(reason for _, _, reason in plan.skipped)
    wanted = assigned[0, : -(-rows // stage.micro_batch)].tolist()
    made: list[tuple[Batch, Sequence[Row]]] = []
    for numbers in wanted:
        placed = tuple(plan.rows[n] for n in numbers)
        micro_batch = maker.make(placed)
        left_out.update(fault.reason for fault in micro_batch.met if fault)
        made.append((micro_batch.batch, placed))
    about = Step(
        recipe=recipe.name,
        stage=stage.name,
        number=step,
        rows=plan.rows,
        sequence_length=stage.sequence_length,
        skipped=left_out,
    )
    shown = islice(_packed(made, rendering, stage.mask), rows)
    page = rows_page(shown, tokenizer, about)
    with commit(out) as f:
        f.write(page.encode())
    return Previewed(min(rows, sum(len(placed) for _, placed in made)), len(plan.rows))


def _packed(
    made: Sequence[tuple[Batch, Sequence[Row]]], rendering: Rendering, mask: MaskKind
) -> Iterator[PackedRow]:
    """The rows one by one: a mask of 4,096 positions is 16 MB."""
    for batch, rows in made:
        for number, row in enumerate(rows):
            origins = [
                Origin(
                    source=p.source,
                    split=rendering.modes[p.variant % len(rendering.modes)],
                    part=p.piece,
                    epoch=p.epoch,
                )
                for p in row
            ]
            yield PackedRow(batch, number, _mask(batch, number, mask), origins)


def _mask(batch: Batch, row: int, kind: MaskKind) -> np.ndarray:
    """bool[T, T], by the predicate that the model attends by."""
    only = slice(row, row + 1)
    blocks = full_blocks(kind, batch.image_ids[only], batch.labels[only])
    see = allowed(batch.document_ids[only], blocks)
    mask: np.ndarray = dense_mask(see, 1, batch.input_ids.shape[1], "cpu")[0, 0].numpy()
    return mask
