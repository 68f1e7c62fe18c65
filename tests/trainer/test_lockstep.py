"""Ranks that share a model under ZeRO-3 decode together, whatever each of them has to say."""

from typing import Any

import numpy as np
import torch

from data_pipeline.image_spec import ImageSpec, PixelShuffle
from data_pipeline.stream.decode import Picture
from ranks import on_ranks
from toy_backbones import toy_mistral, toy_tower
from trainer.distributed import World
from trainer.engine.initialize import initialize
from trainer.evaluation.generate import Prompt, generate
from trainer.evaluation.lockstep import Lockstep
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.models.build import build_model
from trainer.models.config import Model
from trainer.models.freeze import freeze, parameter_groups

CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "zero_allow_untested_optimizer": True,
}
TRAINED = {"connector": 1.0, "language": 1.0, "new_tokens": 1.0}


def tiny() -> AutoregressiveVLM:
    page = Model(image=ImageSpec(longest_edge=32, patch=8), connector=PixelShuffle(factor=2))
    return build_model(page, toy_tower(), toy_mistral(40, initializer_range=0.5))


def shown() -> Prompt:
    patches = np.random.default_rng(1).integers(0, 256, (8, 3, 8, 8), dtype=np.uint8)
    return Prompt([40, 42, 42, 42, 42, 41, 5], [0, 1, 1, 1, 1, 0, 0], [Picture.of(patches, (2, 4))])


def together(world: World) -> tuple[Any, Any, list[Any], int]:
    """What a rank says alone, and among the others: rank 0, about a picture, ends at once; rank 1 never."""
    torch.manual_seed(0)
    model = tiny()
    prompts = [shown()] if world.is_main else [Prompt([1, 2, 3, 4, 5, 6, 7], [0] * 7)]
    alone = generate(model, prompts, max_new_tokens=8, eos_id=None, pad_id=0)[0]
    freeze(model, TRAINED)
    engine = initialize(
        model, parameter_groups(model, TRAINED, lr=0.1, weight_decay=0.0), CONFIG, lr=0.1, betas=(0.9, 0.9)
    )
    asked: list[int] = []
    ranks = Lockstep(world, lambda: asked.append(world.rank))
    end = alone[0] if world.is_main else -1
    found = generate(engine.module, prompts, max_new_tokens=8, eos_id=end, pad_id=0, together=ranks.any)[0]
    batches = list(ranks.rounds(["a"] if world.is_main else ["b", "c", "d"], ""))
    return alone, found, batches, len(asked)


def test_ranks_decode_until_none_has_an_answer_to_finish_and_take_equally_many_batches():
    (_, first, idle, agreed), (alone, second, busy, agreed_too) = on_ranks(together)
    assert first == []
    assert second == alone
    assert len(alone) == 8
    assert (idle, busy) == (["a", "", ""], ["b", "c", "d"])
    assert agreed == agreed_too == 3


def test_a_rank_with_a_model_of_its_own_waits_for_nobody():
    alone = Lockstep()
    assert not alone.shared
    assert (alone.any(True), alone.any(False)) == (True, False)
    assert list(alone.rounds([1, 2], 0)) == [1, 2]
