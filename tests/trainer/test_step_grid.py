"""A step over ranks and micro-batches is the step of one big batch in one process, under every ZeRO stage."""

import deepspeed
import pytest
import torch
from torch import nn

from data_pipeline.batch import IGNORE, Batch
from dealt import CLIP, EVERYTHING, LR, STEPS, micro_batch, run_of, stage_for
from modalities import model_of
from ranks import on_ranks
from trainer.loop import train_step
from trainer.models.freeze import parameter_groups

FACTORS = [1.0, 1.0, 0.5]
"""Of the learning rate: a step of warm-up, then linear to a half."""
CPU = {"device": "cpu"}
WHOLE = {"stage3_param_persistence_threshold": 0}
ZERO = {
    "0": {"stage": 0},
    "1": {"stage": 1},
    "2": {"stage": 2},
    "3": {"stage": 3, **WHOLE},
    "2, optimizer offloaded": {"stage": 2, "offload_optimizer": CPU},
    "3, all offloaded": {"stage": 3, **WHOLE, "offload_optimizer": CPU, "offload_param": CPU},
    "3, hpZ": {"stage": 3, **WHOLE, "zero_hpz_partition_size": 2},
}


def joined(batches: list[Batch]) -> Batch:
    """The rows of all of them as one batch."""
    before = [sum(len(b.grids) for b in batches[:i]) for i in range(len(batches))]
    numbers = [b.image_ids + n * (b.image_ids > 0) for b, n in zip(batches, before, strict=True)]
    index = [b.patch_index + torch.tensor([n, 0, 0]) for b, n in zip(batches, before, strict=True)]
    rows = ("input_ids", "labels", "positions", "document_ids", "patches")
    return Batch(
        **{key: torch.cat([getattr(b, key) for b in batches]) for key in rows},
        image_ids=torch.cat(numbers),
        patch_index=torch.cat(index),
        grids=tuple(grid for b in batches for grid in b.grids),
    )


def trained(world, zero, accumulation):
    run = run_of(world, ZERO[zero], accumulation)
    series = []
    for _ in range(STEPS):
        metrics = train_step(run)
        series.append((metrics["loss"], metrics["grad_norm"]))
    weights = {}
    for name, p in run.engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([p]):
            weights[name] = p.detach().clone()
    return series, weights


def all_trained(world, cases):
    """All cases in one start of ranks; weights are those of rank 0."""
    done = {case: trained(world, *case) for case in cases}
    return {case: (series, weights if world.is_main else None) for case, (series, weights) in done.items()}


def one_big_batch(count):
    """Plain torch: no ranks, no accumulation, no DeepSpeed."""
    stage = stage_for(count)
    model = model_of(EVERYTHING, stage)
    groups = parameter_groups(model, stage.train, lr=stage.lr, weight_decay=stage.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=stage.betas)
    series = []
    for step, factor in enumerate(FACTORS):
        for group in optimizer.param_groups:
            group["lr"] = LR * factor * EVERYTHING.train[group["name"].removesuffix(".no_decay")]
        batch = joined([micro_batch(step, n) for n in range(count)])
        loss = model(batch) / max(1, int((batch.labels != IGNORE).sum()))
        loss.backward()
        norm = nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], CLIP)
        optimizer.step()
        optimizer.zero_grad()
        series.append((float(loss.detach()), float(norm)))
    return series, {name: p.detach() for name, p in model.named_parameters()}


def compare(ranks, cases, seconds):
    of_ranks = on_ranks(all_trained, cases, ranks=ranks, seconds=seconds)
    twins = {n: one_big_batch(n) for n in {ranks * accumulation for _, accumulation in cases}}
    assert all(norm > CLIP for series, _ in twins.values() for _, norm in series if norm)  # it clips
    start = model_of(EVERYTHING, stage_for(1)).state_dict()
    for case in cases:
        expected, weights = twins[ranks * case[1]]
        for rank in of_ranks:
            assert rank[case][0] == [pytest.approx(pair, abs=2e-5, rel=2e-5) for pair in expected], case
        theirs = of_ranks[0][case][1]
        assert set(theirs) == set(weights)
        for name, weight in weights.items():
            assert float((theirs[name] - weight).abs().max()) < 2e-5, (case, name)
        moved = {name.split(".")[0] for name, weight in weights.items() if not weight.equal(start[name])}
        assert moved == set(EVERYTHING.train)


def test_a_few_ways_of_dividing_a_batch_are_one_big_batch():
    compare(2, [("1", 2), ("3, all offloaded", 3)], seconds=600)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_zero_stage_world_size_and_accumulation_is_one_big_batch(ranks):
    zeros = [zero for zero in ZERO if zero != "3, hpZ" or ranks == 4]
    compare(ranks, [(zero, accumulation) for zero in zeros for accumulation in (1, 2, 3)], seconds=1000)
