"""The losses and figures of routing, and what a recipe may ask of it."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
)

from adapted import batch
from data_pipeline.batch import PAD_DOCUMENT, Batch
from mixtures import HEADS, SIZES, WIDTH, llama
from trainer.models.moe.config import MixtureOfExperts
from trainer.models.moe.layer import MoELayer, routing_of, upcycle
from trainer.models.moe.routing import Routing, balance_loss, z_loss


def naive_losses(scores: torch.Tensor, k: int, real: list[bool]) -> tuple[torch.Tensor, torch.Tensor]:
    """Both papers' equations, token by token: mean balance and mean z of the real tokens."""
    experts = scores.shape[1]
    taken = [0] * experts
    mean_p = [torch.zeros(()) for _ in range(experts)]
    z = torch.zeros(())
    count = sum(real)
    for row, counts in zip(scores, real, strict=True):
        if not counts:
            continue
        exp = row.exp()
        z = z + exp.sum().log() ** 2 / count
        for e in range(experts):
            mean_p[e] = mean_p[e] + exp[e] / exp.sum() / count
        for e in sorted(range(experts), key=lambda e: -float(row.detach()[e]))[:k]:
            taken[e] += 1
    balance = experts * sum(taken[e] / (count * k) * mean_p[e] for e in range(experts))
    return balance, z


@pytest.mark.parametrize("k", [2, 3])
def test_the_losses_are_those_of_the_papers_and_padding_counts_for_nothing(k):
    torch.manual_seed(3)
    scores = torch.randn(9, 5, requires_grad=True)
    real = torch.tensor([True] * 5 + [False] + [True] * 2 + [False])
    chosen = scores.topk(k).indices
    load = F.one_hot(chosen, 5).sum(1)[real].sum(0).float()
    ours = torch.stack([balance_loss(scores, load, real), z_loss(scores, real)])
    twins = torch.stack(naive_losses(scores, k, real.tolist()))
    torch.testing.assert_close(ours / 7, twins)
    for i in range(2):
        (mine,) = torch.autograd.grad(ours[i] / 7, scores, retain_graph=True)
        (twin,) = torch.autograd.grad(twins[i], scores, retain_graph=True)
        torch.testing.assert_close(mine, twin, atol=1e-6, rtol=1e-5)
        assert not mine[~real].any()
    even = torch.zeros(8, 4)
    assert balance_loss(even, torch.full((4,), 4.0), torch.ones(8, dtype=torch.bool)) == pytest.approx(8)


def one_layer(**moe) -> tuple[MoELayer, Routing]:
    torch.manual_seed(4)
    config = MixtureOfExperts(every=1, **moe)
    model = LlamaForCausalLM(LlamaConfig(**SIZES | {"num_hidden_layers": 1}, **HEADS))
    upcycle(model, config)
    layer = model.model.layers[0].mlp
    nn.init.normal_(layer.router.weight)
    return layer, layer.routing


def padded() -> Batch:
    """Two rows; the second ends in padding."""
    made = batch(0, 1)
    documents = made.document_ids.clone()
    documents[1, 7:] = PAD_DOCUMENT
    return replace(made, document_ids=documents)


def test_figures_of_micro_batches_and_ranks_add_up_to_those_of_all_their_tokens():
    layer, routing = one_layer()
    hidden = torch.randn(3, 2, 12, WIDTH)
    whole = padded()
    real = (whole.document_ids > 0).flatten()
    sums = []
    for micro_batches in (hidden[:2], hidden[2:]):  # two ranks, of two micro-batches and of one
        for x in micro_batches:
            routing.begin(whole)
            layer(x)
            routing.loss()
        sums.append(routing.sums())
    figures = routing.figures([a + b for a, b in zip(*sums, strict=True)], 3 * int(real.sum()))
    scores = layer.router(hidden[:, real.view(2, 12)].flatten(0, 1)).double()
    p = scores.softmax(-1)
    share = F.one_hot(scores.topk(2).indices, 4).sum((0, 1)) / scores.shape[0] / 2
    assert figures["expert_share_max"] == pytest.approx(float(share.max()))
    assert figures["expert_share_min"] == pytest.approx(float(share.min()))
    assert figures["router_entropy"] == pytest.approx(float(-(p * p.log()).sum(-1).mean().detach()), rel=1e-5)
    assert figures["router_z"] == pytest.approx(
        float(scores.logsumexp(-1).square().mean().detach()), rel=1e-5
    )
    per_batch = [naive_losses(layer.router(x.flatten(0, 1)), 2, real.tolist())[0].item() for x in hidden]
    assert figures["router_balance"] == pytest.approx(sum(per_batch) / 3, rel=1e-5)
    assert len(routing.sums()) == len(sums[0])  # a rank that noted nothing sends as many numbers


@pytest.mark.parametrize("again", [False, True])
def test_the_auxiliary_loss_moves_router_and_inputs_also_when_the_forward_pass_is_made_again(again):
    layer, routing = one_layer(balance=0.3, z=0.2)
    x = torch.randn(2, 12, WIDTH, requires_grad=True)
    whole = padded()
    real = (whole.document_ids > 0).flatten().tolist()
    routing.begin(whole)
    out = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
    (out.sum() + routing.loss()).backward()
    got = [x.grad, layer.router.weight.grad]
    twin_x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    routing.sums()
    balance, z = naive_losses(F.linear(twin_x, layer.router.weight).flatten(0, 1), 2, real)
    (layer(twin_x).sum() + sum(real) * (0.3 * balance + 0.2 * z)).backward()
    for mine, twin in zip(got, [twin_x.grad, layer.router.weight.grad], strict=True):
        torch.testing.assert_close(mine, twin, atol=1e-5, rtol=1e-4)


def test_what_is_computed_again_in_the_backward_pass_does_not_outlive_it():
    layer, routing = one_layer()
    computed = []

    def block(x: torch.Tensor) -> torch.Tensor:
        hidden = x.exp()
        computed.append(StorageWeakRef(hidden.untyped_storage()))
        return layer(hidden)

    routing.begin(padded())
    out = checkpoint(block, torch.randn(2, 12, WIDTH, requires_grad=True), use_reentrant=False)
    (out.sum() + routing.loss()).backward()
    assert [storage.expired() for storage in computed] == [True, True]


def test_a_frozen_router_adds_no_loss_and_evaluation_notes_nothing():
    layer, routing = one_layer()
    layer.requires_grad_(False)
    x = torch.randn(2, 12, WIDTH, requires_grad=True)
    routing.begin(padded())
    layer(x)
    assert not routing.loss().requires_grad
    assert any(routing.sums())
    routing.begin(padded())
    layer.eval()(x)
    assert routing.loss() == 0.0
    assert not any(routing.sums())


def test_a_dense_model_has_an_empty_routing():
    routing = routing_of(llama())
    routing.begin(padded())
    assert (routing.loss(), routing.sums(), routing.figures([], 3)) == (0.0, [], {})


@pytest.mark.parametrize(
    ("page", "says"), [({"top_k": 1}, "greater than or equal to 2"), ({"top_k": 5}, "has only 4 experts")]
)
def test_a_mixture_that_cannot_be_is_refused(page, says):
    with pytest.raises(ValueError, match=says):
        MixtureOfExperts(**page)
