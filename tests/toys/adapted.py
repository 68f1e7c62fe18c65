"""A tiny model with adapters, its batches, and what a rank of ZeRO-3 does with them."""

from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch

from data_pipeline.batch import Batch
from data_pipeline.errors import ConfigError
from data_pipeline.image_spec import ImageSpec, Perceiver
from toy_backbones import toy_mistral, toy_tower
from trainer.distributed import World, all_sum
from trainer.engine import checkpoint, saving
from trainer.engine.ds_config import merge_ds_config
from trainer.engine.initialize import initialize
from trainer.engine.state import TrainState
from trainer.export.consolidate import consolidate
from trainer.models.adapters import attach, is_adapter
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.models.build import build_model
from trainer.models.config import Model
from trainer.models.freeze import freeze, parameter_groups
from trainer.models.gradients import GradientCheck
from trainer.models.tuning import Tuning

STEPS, RANKS, LR = 3, 2, 1e-2
RESUMED = 1
"""The step after which a second engine goes on from a checkpoint."""


def plain_model(seed: int = 0) -> AutoregressiveVLM:
    torch.manual_seed(seed)
    vision = toy_tower(intermediate_size=24)
    language = toy_mistral(hidden_size=16, intermediate_size=24)
    page = Model(
        image=ImageSpec(longest_edge=32, patch=8),
        connector=Perceiver(latents=3, depth=1, heads=2, kv_heads=1, head_dim=8),
    )
    return build_model(page, vision, language)


def tunings(kind: str, rank: int = 4) -> dict[str, Tuning]:
    """Adapters of that kind everywhere, with the new tokens in full."""
    adapted = Tuning.model_validate({kind: {"rank": rank, "alpha": 8}, "lr": 0.5} if kind != "full" else 0.5)
    return {"vision": adapted, "connector": adapted, "language": adapted, "new_tokens": Tuning()}


MIXED = tunings("dora") | {"connector": tunings("lora")["connector"]}
"""What the ranks train: both kinds, in every module."""


def batch(step: int, rank: int) -> Batch:
    """Two rows of 12 positions; two images by turns on one rank, and then on the other."""
    draw = torch.Generator().manual_seed(10 * step + rank)
    ids = torch.randint(0, 40, (2, 12), generator=draw)
    labels = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], dim=1)
    image_ids = torch.zeros_like(ids)
    grids = ((4, 4), (2, 3)) if rank == step % 2 else ()
    if grids:
        ids[:, 2:7] = torch.tensor([40, 42, 42, 42, 41])
        image_ids[:, 3:6] = torch.tensor([[1], [2]])
        labels[:, 1:6] = -100
    return two_rows(ids, labels, image_ids, grids, draw)


def two_rows(
    ids: torch.Tensor,
    labels: torch.Tensor,
    image_ids: torch.Tensor,
    grids: tuple[tuple[int, int], ...],
    draw: torch.Generator,
) -> Batch:
    """int64[2, 12] each; the patches of the images of these grids are drawn, 8 pixels a side."""
    index = [(n, i // c, i % c) for n, (r, c) in enumerate(grids) for i in range(r * c)]
    return Batch(
        input_ids=ids,
        labels=labels,
        positions=torch.arange(12).expand(2, 12),
        document_ids=torch.ones_like(ids),
        image_ids=image_ids,
        patches=torch.randint(0, 256, (len(index), 3, 8, 8), dtype=torch.uint8, generator=draw),
        patch_index=torch.tensor(index, dtype=torch.int64).view(-1, 3),
        grids=grids,
    )


def adapted_model(train: dict[str, Tuning], seed: int = 0) -> AutoregressiveVLM:
    model = plain_model(seed)
    attach(model, train)
    freeze(model, train)
    model.enable_activation_checkpointing()
    return model


def train_and_resume(world: World, out: Path) -> dict[str, Any]:
    """Train STEPS steps; a second engine, from other weights, goes on after RESUMED."""
    refuse_missing_gradients(world)
    zero3 = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
    config = merge_ds_config(zero3, micro_batch=2, accumulation=1, world_size=world.size, clip=1.0)

    def engine_of(seed: int) -> deepspeed.DeepSpeedEngine:
        model = adapted_model(MIXED, seed)
        groups = parameter_groups(model, MIXED, lr=LR, weight_decay=0.1)
        return initialize(model, groups, config, lr=LR, betas=(0.9, 0.95))

    def losses(engine: deepspeed.DeepSpeedEngine, gradients: GradientCheck, steps: range) -> list[float]:
        seen = []
        for step in steps:
            ours = batch(step, world.rank)
            loss = engine(ours)
            targets, total = all_sum(world, ours.target_tokens, float(loss.detach()))
            engine.backward(loss * world.size / targets)
            gradients.check(world)
            engine.step()
            seen.append(total / targets)
            if step + 1 == RESUMED:
                saving.save(engine, out, TrainState(step=RESUMED), {}, world, keep=2)
        return seen

    engine = engine_of(0)
    unbroken = losses(engine, GradientCheck(engine.module), range(STEPS))
    saved, _ = checkpoint.newest(out)
    assert saved is not None
    other = engine_of(1)
    checkpoint.load(other, saved, world)
    resumed = losses(other, GradientCheck(other.module), range(RESUMED, STEPS))
    saving.save(other, out, TrainState(step=STEPS), {}, world, keep=2)
    before = adapted_model(MIXED, 0).state_dict()
    after = consolidate(checkpoint.directory_of(out, STEPS))
    return {
        "unbroken": unbroken,
        "resumed": resumed,
        "moved": sorted(name for name in after if not after[name].equal(before[name])),
        "to_move": sorted(n for n in before if is_adapter(n) or n.startswith("new_tokens")),
    }


def refuse_missing_gradients(world: World) -> None:
    """A gradient that one rank alone misses stops both."""
    pair = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2, bias=False) for name in "ab"})
    check = GradientCheck(pair)
    x = pair["a"](torch.ones(1, 2))
    (pair["b"](x) if world.rank == 0 else x).sum().backward()
    with pytest.raises(ConfigError, match=r"1 of 2 .*: b\.weight \(1 of 2 ranks\)"):
        check.check(world)
