"""ZeRO-3 in bf16 on two processes whose batches hold images by turns: no hang, equal weights.

A rank that leaves out the tower would wait for ever, so the processes have a deadline of their own.
"""

import deepspeed
import pytest
import torch

from adapted import two_rows
from data_pipeline.batch import Batch
from data_pipeline.image_spec import ImageSpec, Perceiver, PixelShuffle
from ranks import on_ranks
from toy_backbones import toy_mistral, toy_tower
from trainer.distributed import World
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.models.build import build_model
from trainer.models.config import Model
from trainer.models.freeze import freeze, parameter_groups


def tiny(kind: str) -> AutoregressiveVLM:
    connector = (
        PixelShuffle()
        if kind == "pixel_shuffle"
        else Perceiver(latents=4, depth=1, heads=2, kv_heads=1, head_dim=8)
    )
    torch.manual_seed(0)
    vision, language = toy_tower(num_hidden_layers=2), toy_mistral()
    page = Model(image=ImageSpec(longest_edge=32, patch=8), connector=connector)
    # As with Idefics2's layout: three more rows of the head.
    return build_model(page, vision, language, predicts_new=kind == "perceiver")


def by_turns(kind: str, step: int, rank: int) -> Batch:
    """Two images on one rank, and then on the other."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    ids = torch.randint(0, 40, (2, 12), generator=generator)
    labels = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], dim=1)
    image_ids = torch.zeros_like(ids)
    images = 2 * int(rank == step % 2)
    if images:
        ids[:, 2:8] = torch.tensor([40, 42, 42, 42, 42, 41])
        image_ids[:, 3:7] = torch.tensor([[1], [2]])
        labels[:, 1:7] = -100
    if step == 1 and kind == "perceiver" and rank:
        labels[:, 9] = 42  # a new token as a target, on one rank alone
    if step == 2:
        labels[:] = -100 if rank else labels  # and a rank without one target
    # Images of other sizes on each rank and step: the modules are still called once each.
    grids = ((4, 4), (1 + step, 3))[:images]
    return two_rows(ids, labels, image_ids, grids, generator)


def train_by_turns(world: World, kind: str, trained: list[str]) -> None:
    model = tiny(kind)
    train = dict.fromkeys(trained, 1.0)
    freeze(model, train)
    model.enable_activation_checkpointing()
    groups = parameter_groups(model, train, lr=1e-2, weight_decay=0.1)
    before = {n: p.detach().clone().bfloat16() for n, p in model.named_parameters()}
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(groups),
        config={
            "train_micro_batch_size_per_gpu": 2,
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
            "zero_force_ds_cpu_optimizer": False,
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 1000000,
        },
    )
    for step in range(3):
        loss = engine(batch=by_turns(kind, step, world.rank))
        assert loss.isfinite(), (step, loss)
        engine.backward(loss)
        engine.step()

    moved, heads = set(), set()
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            mine = parameter.detach().float().contiguous()
            theirs = [torch.empty_like(mine) for _ in range(2)]
            torch.distributed.all_gather(theirs, mine)
            assert theirs[0].equal(theirs[1]), name
            assert mine.isfinite().all(), name
            if not mine.equal(before[name].float()):
                moved.add(name.split(".")[0])
                heads.add(name.endswith("new_tokens.head.weight"))
    assert moved == set(trained), moved
    assert (True in heads) == (kind == "perceiver")


@pytest.mark.parametrize(
    ("connector", "trained"),
    [
        ("pixel_shuffle", "connector+new_tokens"),
        ("pixel_shuffle", "connector+language+new_tokens"),
        ("perceiver", "vision+connector+language+new_tokens"),
    ],
)
def test_ranks_with_and_without_images_stay_together(connector, trained):
    on_ranks(train_by_turns, connector, trained.split("+"))
