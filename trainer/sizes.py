"""The model of a recipe without its weights: parameters by module and stage, operations of a step."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Idefics2VisionConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from data_pipeline.errors import ConfigError
from data_pipeline.stream.layout import LAYOUTS
from trainer.config import Recipe, Stage
from trainer.models.adapters import attach, is_adapter
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.models.build import build_model
from trainer.models.flops import Flops, Load, causal_pairs, training
from trainer.models.freeze import Counted, count_parameters, describe, freeze
from trainer.models.language import language_config
from trainer.models.vision import vision_config


@dataclass(frozen=True)
class Size:
    """A stage's model: its modules, and the operations of one target token and of one image in training.

    `plain`: its parameters without adapters, as it is exported merged.
    """

    stage: str
    modules: tuple[Counted, ...]
    plain: int
    token: Flops
    image: Flops


def sizes(recipe: Recipe) -> tuple[Size, ...]:
    """Of each stage, on the meta device."""
    return tuple(_size(recipe, stage) for stage in recipe.stages)


def skeleton(recipe: Recipe, stage: Stage) -> AutoregressiveVLM:
    """The model of a stage on the meta device, with its adapters, frozen as it trains."""
    expected = recipe.expected
    with torch.device("meta"):
        vision = Idefics2VisionTransformer(Idefics2VisionConfig(**expected.vision))
        language = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**expected.language), trust_remote_code=False, attn_implementation="sdpa"
        )
        layout = LAYOUTS[expected.layout]
        predicts_new = layout.eos in layout.added or layout.end in layout.added
        model = build_model(recipe.model_of(stage), vision, language, stage.mask, predicts_new)
        attach(model, stage.train)
    freeze(model, stage.train)
    return model


def table(recipe: Recipe) -> Iterator[str]:
    """The sizes as lines for the screen."""
    yield from assumed_backbones(recipe)
    for stage, size in zip(recipe.stages, sizes(recipe), strict=True):
        yield f"{stage.name}, from {stage.init_from}"
        yield from (f"  {line}" for line in describe(size.modules))
        if size.plain < sum(m.parameters for m in size.modules):
            yield f"  {'without adapters':15} {size.plain:14,}"
        text, row = size.token.total, stage.sequence_length
        patches = recipe.model_of(stage).image.largest_grid ** 2
        yield (
            f"  training FLOPs: {_short(text)} a token, {_short(size.image.total)} an image of {patches:,} "
            f"patches, {_short(text * row * stage.global_batch)} a step of text alone"
        )


def assumed_backbones(recipe: Recipe) -> Iterator[str]:
    """A line for the screen, where the recipe leaves open what its backbones are."""
    if recipe.backbones.expects is None:
        yield "Backbones: as `fovea backbones` makes them; of others say backbones.expects (see idefics2-8b)."


def refuse_other_backbones(recipe: Recipe, backbones: Path) -> None:
    """Raises ConfigError where config.json of a backbone says another shape than the recipe expects."""
    expected = recipe.backbones.expects
    if expected is None:
        return
    found: dict[str, Any] = {
        "vision": vision_config(backbones / "vision")[0],
        "language": language_config(backbones / "language"),
    }
    wrong = [
        f"{backbones / part / 'config.json'}: {key} is {getattr(found[part], key, None)!r}, the recipe's "
        f"backbones.expects.{part} says {value!r}"
        for part, keys in (("vision", expected.vision), ("language", expected.language))
        for key, value in keys.items()
        if getattr(found[part], key, None) != value
    ]
    if wrong:
        raise ConfigError(
            "the backbones are not those that the recipe is for:\n  " + "\n  ".join(wrong) + "\n"
            "  Put others there, or say in the recipe what you have."
        )


def _size(recipe: Recipe, stage: Stage) -> Size:
    expected, length = recipe.expected, stage.sequence_length
    config = recipe.model_of(stage)
    row = Load(patches=(), tokens=length, pairs=causal_pairs([length]), targets=length)
    image = Load(patches=(config.image.largest_grid**2,), tokens=0, pairs=0, targets=0)
    of_row, of_image = (
        training(config, expected.vision, expected.language, load, stage.train) for load in (row, image)
    )
    token = Flops(**{k: v // length for k, v in vars(of_row).items()})
    model = skeleton(recipe, stage)
    plain = sum(p.numel() for name, p in model.named_parameters() if not is_adapter(name))
    return Size(stage.name, count_parameters(model, stage.train), plain, token, of_image)


def _short(operations: int) -> str:
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if operations >= size:
            return f"{operations / size:.3g} {unit}"
    return f"{operations / 1e6:.3g} M"
