"""The model that a stage starts from: over its backbones, or with what the stage before has left.

Plain, or under ZeRO-3 in the ranks' parts: then no rank holds the whole at any time.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from data_pipeline.errors import DataError
from data_pipeline.stream.tokens import Tokenizer
from trainer.config import Stage
from trainer.distributed import World, from_main
from trainer.engine.checkpoint import Checkpoint
from trainer.engine.sharding import Shards
from trainer.export.consolidate import consolidate, lazily
from trainer.models.adapters import attach, hand_on, warm_start
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.models.build import build_model, predicts_new
from trainer.models.config import Model
from trainer.models.language import language_on_meta, load_language
from trainer.models.masks import MaskKind
from trainer.models.moe.layer import upcycled
from trainer.models.pretrained import pretrained_weights
from trainer.models.sharded import fill
from trainer.models.stored import Stored, StoredWeights
from trainer.models.tuning import Tuning
from trainer.models.vision import load_vision, vision_on_meta, vision_weights
from trainer.models.weights import fitting, load_weights


def load_parts(
    config: Model, backbones: Path, mask: MaskKind, on_meta: bool = False
) -> tuple[AutoregressiveVLM, Tokenizer]:
    """The model over the backbones, and their tokenizer.

    Connector and new tokens are read where `fovea import` put them beside the backbones, and freshly
    initialised elsewhere. Raises DataError where they do not fit `config`, or where tokenizer and language
    model do not share a vocabulary. With `on_meta` nothing is read: the backbones' parameters are on the meta
    device, and `stored_parts` are the values.
    """
    tokenizer = Tokenizer.load(backbones / "tokenizer")
    model = build_model(
        config,
        (vision_on_meta if on_meta else load_vision)(backbones / "vision"),
        (language_on_meta if on_meta else load_language)(backbones / "language"),
        mask,
        predicts_new=predicts_new(tokenizer),
    )
    if tokenizer.text_vocab_size != model.vocabulary:
        # The visual tokens' ids follow the vocabulary: with another size they would name words.
        raise DataError(
            f"{backbones}: the tokenizer has {tokenizer.text_vocab_size} text tokens, the language model "
            f"{model.vocabulary}. Take both from the same directory, or make them again: fovea backbones"
        )
    if not on_meta:
        for part, file in _beside(backbones):
            load_weights(getattr(model, part), file)
    return model, tokenizer


def stored_parts(model: AutoregressiveVLM, backbones: Path) -> dict[str, Stored]:
    """What `load_parts` reads, unread, by the names of `model`. Raises DataError as it does."""
    parts = {"vision": vision_weights(model.vision, backbones / "vision")}
    if next(model.language.parameters()).is_meta:
        dense = language_on_meta(backbones / "language")  # the names in the files, without experts
        parts["language"] = upcycled(model.language, pretrained_weights(dense, backbones / "language"))
    for part, file in _beside(backbones):
        given = StoredWeights([file])
        names = fitting(getattr(model, part), given.shapes, str(file))
        parts[part] = {name: given.all()[theirs] for name, theirs in names.items()}
    return {f"{part}.{name}": tensor for part, found in parts.items() for name, tensor in found.items()}


def start(model: AutoregressiveVLM, before: Checkpoint | None, train: Mapping[str, Tuning]) -> None:
    """The weights of the checkpoint `before` where there is one, and the adapters of `train`."""
    if before is None:
        attach(model, train)
    else:
        warm_start(model, consolidate(before.path), _trained_by(before), train, str(before.path))


def start_sharded(
    model: AutoregressiveVLM,
    before: Checkpoint | None,
    train: Mapping[str, Tuning],
    backbones: Path,
    shards: Shards,
    world: World,
) -> None:
    """As `start`, on a model that was made on the meta device: each rank keeps its part (all ranks)."""
    if before is None:
        fill(model, stored_parts(model, backbones), shards.cut, world)
        with shards.gathered_where_read():
            attach(model, train)
    else:
        origin = str(before.path)
        theirs = lazily(before) if world.is_main else {}
        shapes = from_main(world, {name: tensor.shape for name, tensor in theirs.items()})
        weights = theirs or {name: Stored(shape, _read_by_rank_0) for name, shape in shapes.items()}

        def load(merged: Mapping[str, Stored]) -> None:
            names = fitting(model, {name: tensor.shape for name, tensor in merged.items()}, origin)
            fill(model, {own: merged[given] for own, given in names.items()}, shards.cut, world)

        with shards.gathered_where_read():
            hand_on(model, weights, _trained_by(before), train, load)
    shards.finish(model)


def _read_by_rank_0() -> torch.Tensor:
    raise AssertionError("only rank 0 reads")


def _trained_by(before: Checkpoint) -> dict[str, Tuning]:
    return Stage.model_validate(before.fingerprints["stage"]).train


def _beside(backbones: Path) -> list[tuple[str, Path]]:
    files = ((part, backbones / f"{part}.safetensors") for part in ("connector", "new_tokens"))
    return [(part, file) for part, file in files if file.is_file()]
