"""Experts under ZeRO-3: ranks that each route in their own way take the steps of one process."""

from dataclasses import replace

import deepspeed
import pytest
import torch
from torch.nn import functional as F

from adapted import batch, plain_model
from data_pipeline.batch import IGNORE, PAD_DOCUMENT, Batch
from ranks import on_ranks
from trainer.distributed import World, all_sum
from trainer.engine.ds_config import merge_ds_config
from trainer.engine.initialize import initialize
from trainer.models.freeze import freeze, parameter_groups
from trainer.models.gradients import GradientCheck
from trainer.models.moe.config import MixtureOfExperts
from trainer.models.moe.layer import MoELayer, routing_of, upcycle

STEPS, RANKS, MICRO, LR = 4, 2, 2, 1e-2
MOE = MixtureOfExperts(experts=4, every=1, balance=0.5, z=0.1)
TRAIN = {"vision": 1.0, "connector": 1.0, "language": 1.0, "new_tokens": 1.0}


def model_with(backend: str) -> torch.nn.Module:
    model = plain_model()
    upcycle(model.language, MOE.model_copy(update={"backend": backend}))
    freeze(model, TRAIN)
    return model


def micro_batch(step: int, rank: int, number: int) -> Batch:
    """Images by turns; rank 1 also has rows of one token over and over, half padding, with few targets."""
    made = batch(10 * step + number, rank)
    if rank == 0 or number or made.grids:
        return made
    labels = torch.full_like(made.labels, IGNORE)
    labels[0, :3] = 7
    documents = made.document_ids.clone()
    documents[:, 6:] = PAD_DOCUMENT
    return replace(made, input_ids=torch.full_like(made.input_ids, 7), labels=labels, document_ids=documents)


def train(world: World) -> dict[str, object]:
    model = model_with("grouped")
    model.enable_activation_checkpointing()
    zero3 = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
    config = merge_ds_config(zero3, micro_batch=2, accumulation=MICRO, world_size=RANKS, clip=1.0)
    groups = parameter_groups(model, TRAIN, lr=LR, weight_decay=0.1)
    engine = initialize(model, groups, config, lr=LR, betas=(0.9, 0.95))
    gradients, routing = GradientCheck(engine.module), routing_of(engine.module)
    losses, loads, figures = [], [], []
    for step in range(STEPS):
        batches = [micro_batch(step, world.rank, number) for number in range(MICRO)]
        counts = [(b.target_tokens, int((b.document_ids > 0).sum())) for b in batches]
        targets, tokens = all_sum(world, *(sum(c) for c in zip(*counts, strict=True)))
        total, noted = 0.0, []
        for number, ours in enumerate(batches):
            routing.begin(ours)
            loss = engine(ours)
            share = RANKS * MICRO
            engine.backward(loss * (share / targets) + routing.loss() * (share / tokens))
            total += float(loss.detach())
            noted.append(routing.sums())
            if number + 1 < MICRO:
                engine.step()
        loads += [sums[: MOE.experts] for sums in noted]
        loss_sum, *sums = all_sum(world, total, *map(sum, zip(*noted, strict=True)))
        figures.append(routing.figures(sums, tokens))
        gradients.check(world)
        engine.step()
        losses.append(loss_sum / targets)
    weights = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            weights[name] = parameter.detach().float().clone().numpy()
    return {"losses": losses, "loads": loads, "figures": figures, "weights": weights}


def auxiliary(scores: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Both losses of one layer and micro-batch, as their papers write them: means over its tokens."""
    scores = scores[real]
    taken = F.one_hot(scores.topk(MOE.top_k).indices, MOE.experts).float().sum(1)
    balance = MOE.experts * (taken.mean(0) / MOE.top_k * scores.softmax(-1).mean(0)).sum()
    return MOE.balance * balance + MOE.z * scores.logsumexp(-1).square().mean()


def twin() -> tuple[list[float], dict[str, torch.Tensor]]:
    """One process, one backward pass a step, the loop over experts, no recomputation, losses from outside."""
    model = model_with("loop")
    scores: list[torch.Tensor] = []
    for layer in model.modules():
        if isinstance(layer, MoELayer):
            layer.router.register_forward_hook(lambda *given: scores.append(given[2]))
    optimizer = torch.optim.AdamW(parameter_groups(model, TRAIN, LR, 0.1), lr=LR, betas=(0.9, 0.95))
    losses = []
    for step in range(STEPS):
        batches = [micro_batch(step, r, n) for r in range(RANKS) for n in range(MICRO)]
        tokens = sum(int((b.document_ids > 0).sum()) for b in batches)
        targets = sum(b.target_tokens for b in batches)
        loss, beside = torch.zeros(()), torch.zeros(())
        for b in batches:
            scores.clear()
            loss = loss + model(b) / targets
            real = (b.document_ids > 0).flatten()
            beside = beside + sum(auxiliary(s, real) for s in scores) * int(real.sum()) / tokens
        (loss + beside).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, dict(model.named_parameters())


def test_ranks_that_route_unevenly_take_the_steps_of_one_process():
    ranks = on_ranks(train, ranks=RANKS)
    losses, weights = twin()
    before = model_with("loop").state_dict()
    for rank in ranks:
        assert rank["losses"] == pytest.approx(losses, abs=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(
                torch.from_numpy(rank["weights"][name]), weight.detach(), atol=2e-4, rtol=0
            )
            assert not weight.detach().equal(before[name]) or name.startswith("vision"), name
    assert ranks[0]["figures"] == ranks[1]["figures"]
    # In some micro-batch rank 1 sent nothing to an expert that had tokens on rank 0.
    assert any(
        ours > 0 and theirs == 0
        for mine, others in zip(ranks[0]["loads"], ranks[1]["loads"], strict=True)
        for ours, theirs in zip(mine, others, strict=True)
    )
