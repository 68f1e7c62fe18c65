"""What a step of a stage asks of a model: rows, pictures, tokens, floating-point operations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from data_pipeline.errors import ConfigError
from trainer.config import Recipe, Stage
from trainer.models.config import Recomputed
from trainer.models.flops import Flops, Load, causal_pairs, forward, full_pairs, training
from trainer.models.loss import CHUNK
from trainer.models.recompute import EVERY_LAYER

VISUAL_SHARE = 0.25
"""Of a row's positions, visual tokens, where nothing else is said: Idefics2 saw 1.5 billion pictures of 64
tokens at about 17,000 a batch of 2,048 rows of 2,048 (arXiv 2405.02246), 0.26."""

CAPTION = 16
"""Tokens of text beside each picture in the fullest row: alt-text, short."""


@dataclass(frozen=True)
class Pictures:
    """What is assumed of the data. `row`: pictures of a row, on the average; `fullest`: of the fullest one
    that the recipe allows, of short captions alone; `patches`: of each."""

    row: float
    fullest: int
    patches: int


@dataclass(frozen=True)
class Work:
    """Of one step, of all ranks. `again`: operations of the forward pass that are done a second time, which
    is work but no progress: time counts it, MFU does not."""

    rows: int
    tokens: int
    images: int
    targets: int
    flops: Flops
    again: Flops


def pictures_of(recipe: Recipe, stage: Stage, row: float | None, patches: int | None) -> Pictures:
    """`row`, `patches`: as the user says. Raises ConfigError where a row or a picture cannot be so."""
    model = recipe.model_of(stage)
    image, tokens = model.image, model.image.tokens(model.connector)
    largest = image.largest_grid**2
    if patches is not None and not 1 <= patches <= largest:
        raise ConfigError(
            f"--patches-per-image {patches}: a picture of stage '{stage.name}' has 1 to {largest}, by its "
            "longest_edge"
        )
    patches = patches or largest
    alone = model.image_tokens + 2  # with the tokens around it
    bounds = [
        stage.sequence_length // alone,
        stage.images_per_row,
        (stage.patches_per_row or 0) // patches or None,
    ]
    most = max(1, min(b for b in bounds if b is not None))
    if row is not None and row > most:
        raise ConfigError(
            f"--images-per-row {row:g}: a row of stage '{stage.name}' holds at most {most} "
            "(sequence_length, images_per_row, patches_per_row)"
        )
    fullest = max(1, min(most, stage.sequence_length // (alone + CAPTION)))
    usual = min(VISUAL_SHARE * stage.sequence_length / tokens, fullest) if row is None else row
    return Pictures(row=usual, fullest=max(fullest, math.ceil(usual)), patches=patches)


def work_of(recipe: Recipe, stage: Stage, pictures: Pictures) -> Work:
    """Rows are full, one document each, and every position of text is a target: more work than data will
    ask."""
    expects = recipe.expected
    rows, length = stage.global_batch, stage.sequence_length
    images = round(rows * pictures.row)
    model = recipe.model_of(stage)
    visual = model.image.tokens(model.connector)
    pairs = rows * causal_pairs([length], expects.language.get("sliding_window"))
    if stage.mask != "causal" and model.cross_attention is None:
        pairs += full_pairs([visual]) * images
    load = Load(
        patches=(pictures.patches,) * images,
        tokens=rows * length,
        pairs=pairs,
        targets=rows * length - images * model.image_tokens,
        read=rows * length * visual if model.cross_attention and images else 0,
    )
    shapes = model, expects.vision, expects.language, load
    return Work(
        rows=rows,
        tokens=load.tokens,
        images=images,
        targets=load.targets,
        flops=training(*shapes, stage.train),
        again=_again(stage, forward(*shapes), stage.activation_checkpointing),
    )


def _again(stage: Stage, forward: Flops, setting: bool | Mapping[Recomputed, int]) -> Flops:
    """Layers that are recomputed, where there is a graph; and the logits of all chunks but the last."""
    every = setting if isinstance(setting, Mapping) else EVERY_LAYER if setting else {}
    graph = {
        "vision": "vision" in stage.train,
        "connector": not {"vision", "connector"}.isdisjoint(stage.train),
    }
    done = {part: getattr(forward, part) // n for part, n in every.items() if graph.get(part, True)}
    chunks = -(-stage.micro_batch * stage.sequence_length // CHUNK)
    return Flops(**done, head=forward.head * (chunks - 1) // chunks)
