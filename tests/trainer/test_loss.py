"""The chunked loss against the plain one: values, gradients, memory, and ranks that share the head."""

import copy
import functools

import deepspeed
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from data_pipeline.batch import Batch
from data_pipeline.image_spec import ImageSpec, PixelShuffle
from ranks import on_ranks
from toy_backbones import toy_mistral, toy_tower
from trainer.distributed import World
from trainer.models import autoregressive, loss
from trainer.models.build import build_model
from trainer.models.config import Model
from trainer.models.loss import target_loss, token_loss

WIDTH, VOCABULARY = 8, 11


def plain(hidden, labels, head):
    """All logits at once, as the formula says."""
    logits = head(hidden).float().log_softmax(-1)
    wanted = labels != -100
    return -logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0][wanted].sum()


class Head(nn.Linear):
    """Keeps the shape of each call."""

    def __init__(self, dtype=torch.float32):
        super().__init__(WIDTH, VOCABULARY, bias=False, dtype=dtype)
        self.calls = []

    def forward(self, hidden):
        self.calls.append(tuple(hidden.shape))
        return super().forward(hidden)


def case(targets, rows=3, length=7, dtype=torch.float32):
    """A head, hidden states and labels with `targets` targets at drawn places."""
    torch.manual_seed(targets)
    hidden = torch.randn(rows, length, WIDTH, dtype=dtype).requires_grad_()
    labels = torch.full((rows * length,), -100)
    labels[torch.randperm(rows * length)[:targets]] = torch.randint(0, VOCABULARY, (targets,))
    return Head(dtype), hidden, labels.view(rows, length)


@pytest.mark.parametrize("chunk", [1, 4, 20, 21, 1024])
@pytest.mark.parametrize("targets", [0, 1, 2, 13, 21])
def test_the_chunked_loss_equals_the_plain_one_with_its_gradients(targets, chunk):
    head, hidden, labels = case(targets)
    total, each = target_loss(hidden, labels, head, chunk)
    assert (total.dtype, total.shape, each.shape) == (torch.float32, (), (targets,))
    want = plain(hidden, labels, head)
    logits, flat = head(hidden).flatten(0, 1), labels.flatten()
    alone = [F.cross_entropy(logits[n], flat[n]).item() for n in (flat != -100).nonzero().flatten()]
    torch.testing.assert_close(each, torch.tensor(alone), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total, want, rtol=1e-5, atol=1e-5)
    got = torch.autograd.grad(total, [hidden, head.weight])
    for g, w in zip(got, torch.autograd.grad(want, [hidden, head.weight]), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-5)
    assert all(g.any() == bool(targets) for g in got)


@pytest.mark.parametrize("targets", [1, 13, 21])
def test_in_bf16_it_stays_near_fp32(targets):
    head, hidden, labels = case(targets, dtype=torch.bfloat16)
    total, _ = target_loss(hidden, labels, head, 4)
    exact = Head()
    exact.load_state_dict(head.float().state_dict())
    twin = hidden.detach().float().requires_grad_()
    want = plain(twin, labels, exact)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, want, rtol=2e-2, atol=2e-2)
    wants = torch.autograd.grad(want, [twin, exact.weight])
    head.bfloat16()
    got = torch.autograd.grad(target_loss(hidden, labels, head, 4)[0], [hidden, head.weight])
    for g, w in zip(got, wants, strict=True):
        assert (g.float() - w).norm() < 2e-2 * w.norm()


def test_a_single_token_is_enough_and_a_row_of_one_too():
    head, hidden, labels = case(1, rows=1, length=1)
    torch.testing.assert_close(target_loss(hidden, labels, head)[0], plain(hidden, labels, head))


@pytest.mark.parametrize("targets", [0, 1, 13, 21])
def test_the_head_is_called_equally_often_whatever_the_targets(targets):
    head, hidden, labels = case(targets)
    total, _ = target_loss(hidden, labels, head, 4)
    size = max(1, -(-targets // 6))
    assert head.calls == [(size, WIDTH)] * 6  # 21 positions in chunks of 4
    total.backward()
    assert head.calls == [(size, WIDTH)] * 11  # the last chunk is not made again


def test_the_graph_holds_the_logits_of_one_chunk_alone():
    head, hidden, labels = case(21)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        target_loss(hidden, labels, head, 4)
    weight = (VOCABULARY, WIDTH), (WIDTH, VOCABULARY)
    logits = [shape for shape in kept if VOCABULARY in shape and tuple(shape) not in weight]
    assert {shape[0] for shape in logits} == {4}
    assert len(logits) <= 2  # of the last chunk: the logarithms of its softmax
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        plain(hidden, labels, head)
    assert any(shape[:2] == (3, 7) and shape[-1] == VOCABULARY for shape in kept)


def test_only_targets_reach_the_head():
    head, hidden, labels = case(13)
    for chunk in (1, 4, 1024):
        head.calls.clear()
        with torch.no_grad():
            target_loss(hidden, labels, head, chunk)
        read = sum(rows for rows, _ in head.calls)
        assert 13 <= read <= 13 + len(head.calls)


def test_the_sum_is_torchs_own_in_fp32_whatever_the_logits_are():
    head, hidden, labels = case(13)
    logits = head(hidden).bfloat16()
    total, count = token_loss(logits, labels)
    want = F.cross_entropy(logits.double().flatten(0, 1), labels.flatten(), reduction="sum")
    assert (total.dtype, int(count)) == (torch.float32, 13)
    torch.testing.assert_close(total.double(), want, rtol=1e-6, atol=0)


def test_one_chunk_at_a_vocabulary_of_32k_takes_128_mib():
    assert loss.CHUNK * 32_768 * 4 == 128 * 2**20


def tiny(tied: bool) -> nn.Module:
    torch.manual_seed(0)
    vision = toy_tower()
    language = toy_mistral(num_hidden_layers=1, tie_word_embeddings=tied, initializer_range=0.2)
    config = Model(image=ImageSpec(longest_edge=32, patch=8), connector=PixelShuffle())
    return build_model(config, vision, language)


def text(step: int, rank: int) -> Batch:
    ids = torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(10 * step + rank))
    labels = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], dim=1)
    targets = [(24, 3), (0, 24), (1, 0)][step][rank]  # other counts on each rank, none among them
    labels.view(-1)[targets:] = -100
    return Batch(
        input_ids=ids,
        labels=labels,
        positions=torch.arange(12).expand(2, 12),
        document_ids=torch.ones_like(ids),
        image_ids=torch.zeros_like(ids),
        patches=torch.zeros(0, 3, 8, 8, dtype=torch.uint8),
        patch_index=torch.zeros(0, 3, dtype=torch.int64),
    )


def train_beside_a_twin(world: World, tied: bool) -> None:
    """Three steps under ZeRO-3, each compared with one process that has all batches."""
    autoregressive.target_loss = functools.partial(target_loss, chunk=5)  # 24 positions: 5 chunks
    model = tiny(tied)
    twin = copy.deepcopy(model)
    alone = torch.optim.SGD(twin.parameters(), lr=0.01)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        config={
            "train_micro_batch_size_per_gpu": 2,
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
            "zero_force_ds_cpu_optimizer": False,
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": 0.0,
            "steps_per_print": 1000000,
        },
    )
    for step in range(3):
        total = engine(batch=text(step, world.rank))
        engine.backward(total)
        engine.step()
        sums = [twin(text(step, r)) for r in range(2)]
        torch.testing.assert_close(total, sums[world.rank], rtol=1e-5, atol=1e-5)
        alone.zero_grad()
        (sum(sums) / 2).backward()
        alone.step()
    for (name, mine), want in zip(engine.module.named_parameters(), twin.parameters(), strict=True):
        with deepspeed.zero.GatheredParameters([mine]):
            torch.testing.assert_close(mine, want, rtol=1e-5, atol=1e-5, msg=name)


def train_tied_and_apart(world: World) -> None:
    for tied in (False, True):
        train_beside_a_twin(world, tied)


def test_under_zero3_two_ranks_with_uneven_targets_train_as_one_process():
    """Loss and weights of three steps, head tied and apart. A rank that calls the head less often hangs."""
    on_ranks(train_tied_and_apart)
