"""Experts in the language model: backends equal a loop over tokens, and upcycling changes no output."""

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
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from adapted import batch, plain_model
from data_pipeline.batch import PAD_DOCUMENT, Batch
from data_pipeline.errors import ConfigError, DataError
from trainer.models.adapters import attach, warm_start
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.models.build import build_model
from trainer.models.config import Model
from trainer.models.moe.config import MixtureOfExperts
from trainer.models.moe.experts import Experts, require_backend
from trainer.models.moe.layer import MoELayer, active_parameters, routing_of, upcycle
from trainer.models.moe.routing import Routing, balance_loss, z_loss
from trainer.models.tuning import Tuning

WIDTH, INNER, EXPERTS = 16, 24, 4
SIZES = {"vocab_size": 40, "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}


def llama(**more) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS, **more))


def mistral() -> MistralForCausalLM:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SIZES, **HEADS))


def qwen() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, **HEADS))


class Dense(nn.Module):
    """A gated FFN, as transformers writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, INNER, bias=False)
        self.up_proj = nn.Linear(WIDTH, INNER, bias=False)
        self.down_proj = nn.Linear(INNER, WIDTH, bias=False)
        self.act_fn = nn.SiLU()


def experts_of(backend: str, dtype: torch.dtype) -> Experts:
    """Four experts that have grown apart."""
    torch.manual_seed(1)
    experts = Experts(Dense(), EXPERTS, backend)
    with torch.no_grad():
        for weight in experts.parameters():
            weight += 0.3 * torch.randn_like(weight)
    return experts.to(dtype)


def by_token(experts: Experts, x: torch.Tensor, gates: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The definition: each token through each of its experts."""
    out = []
    for token, weights, mine in zip(x, gates, chosen.tolist(), strict=True):
        y = torch.zeros_like(token)
        for weight, e in zip(weights, mine, strict=True):
            inner = F.silu(experts.gate_proj[e] @ token) * (experts.up_proj[e] @ token)
            y = y + weight * (experts.down_proj[e] @ inner)
        out.append(y)
    return torch.stack(out)


ROUTES = {
    "even": [[i % 4, (i + 1) % 4] for i in range(24)],
    "uneven": [[0, 3]] * 13 + [[1, 0], [3, 1]],  # nobody goes to expert 2
    "one token": [[2, 1]],
    "all on one pair": [[3, 0]] * 17,
    "all experts": [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]],
}


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("backend", ["grouped", "loop"])
def test_a_backend_gives_what_each_token_s_experts_give_and_so_do_its_gradients(backend, route, dtype, close):
    chosen = torch.tensor(ROUTES[route])
    torch.manual_seed(2)
    x = torch.randn(len(chosen), WIDTH, dtype=dtype, requires_grad=True)
    gates = torch.rand(chosen.shape, dtype=dtype, requires_grad=True)
    weigh = torch.randn(x.shape, dtype=dtype)
    seen = []
    for experts, way in ((experts_of(backend, dtype), None), (experts_of("loop", torch.float64), by_token)):
        exact = way is not None
        inputs = [t.detach().double().requires_grad_() if exact else t for t in (x, gates)]
        out = by_token(experts, *inputs, chosen) if exact else experts(*inputs, chosen)
        over = [*inputs, *experts.parameters()]
        seen.append([out, *torch.autograd.grad(out, over, weigh.to(out.dtype))])
    for ours, exactly in zip(*seen, strict=True):
        scale = float(exactly.detach().abs().max())
        assert float((ours.detach().double() - exactly.detach()).abs().max()) <= close * max(1.0, scale)
    idle = set(range(EXPERTS)) - {e for row in ROUTES[route] for e in row}
    assert all(not g[e].any() for g in seen[0][3:] for e in idle)  # zeros, and not None


def test_the_same_tokens_give_the_same_bits_again():
    experts, x = experts_of("grouped", torch.float32), torch.randn(24, WIDTH)
    chosen, gates = torch.tensor(ROUTES["even"]), torch.rand(24, 2)
    runs = []
    for _ in range(2):
        mine = x.clone().requires_grad_()
        out = experts(mine, gates, chosen)
        runs.append([out, *torch.autograd.grad(out.square().sum(), [mine, *experts.parameters()])])
    assert all(a.equal(b) for a, b in zip(*runs, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("backend", ["grouped", "megablocks"])
@pytest.mark.parametrize("route", ROUTES)
def test_on_cuda_each_backend_gives_what_the_loop_gives(backend, route):
    if backend == "megablocks":
        pytest.importorskip("megablocks")
    chosen = torch.tensor(ROUTES[route], device="cuda")
    torch.manual_seed(2)
    inputs = [torch.randn(len(chosen), WIDTH), torch.rand(chosen.shape)]
    weigh = torch.randn(len(chosen), WIDTH).bfloat16().cuda()
    seen = []
    for way in (backend, "loop"):
        experts = experts_of(way, torch.bfloat16).cuda()
        mine = [t.bfloat16().cuda().requires_grad_() for t in inputs]
        out = experts(*mine, chosen)
        seen.append([out, *torch.autograd.grad(out, [*mine, *experts.parameters()], weigh)])
    for ours, exactly in zip(*seen, strict=True):
        scale = float(exactly.detach().abs().max())
        assert float((ours - exactly).detach().abs().max()) <= 2e-2 * max(1.0, scale)


def test_megablocks_without_a_gpu_is_refused_and_what_it_trained_is_evaluated_all_the_same():
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"megablocks, which needs CUDA.*\n.*backend=grouped"):
            require_backend("megablocks")
    require_backend("grouped")
    chosen, gates, x = torch.tensor(ROUTES["uneven"]), torch.rand(15, 2), torch.randn(15, WIDTH)
    trained, plain = (experts_of(b, torch.float32).eval() for b in ("megablocks", "grouped"))
    assert trained(x, gates, chosen).equal(plain(x, gates, chosen))


@pytest.mark.parametrize("make", [mistral, llama, qwen])
@pytest.mark.parametrize("moe", [{}, {"every": 1, "experts": 3, "top_k": 3}, {"every": 4, "backend": "loop"}])
def test_a_fresh_mixture_is_the_dense_model(make, moe):
    config = MixtureOfExperts(**moe)
    dense, sparse = make(), make()
    upcycle(sparse, config)
    ids = torch.randint(0, 40, (2, 11))
    torch.testing.assert_close(sparse(ids).logits, dense(ids).logits, atol=1e-6, rtol=0)
    layers = sparse.model.layers
    assert [i for i, layer in enumerate(layers, 1) if isinstance(layer.mlp, MoELayer)] == [
        i for i in range(1, 5) if i % config.every == 0
    ]
    ffn = sum(p.numel() for p in dense.model.layers[0].mlp.parameters())
    count = len(layers) // config.every
    total = sum(p.numel() for p in dense.parameters()) + count * WIDTH * config.experts
    assert sum(p.numel() for p in sparse.parameters()) == total + count * ffn * (config.experts - 1)
    assert active_parameters(sparse) == total + count * ffn * (config.top_k - 1)
    assert active_parameters(dense) == sum(p.numel() for p in dense.parameters())


def test_all_else_is_drawn_as_without_experts_and_routers_differ_by_seed_and_layer():
    drawn, routers = [], []
    for seed, sparse in ((5, False), (5, True), (6, True)):
        model = llama()
        torch.manual_seed(seed)
        if sparse:
            upcycle(model, MixtureOfExperts())
            routers += [m.router.weight for m in model.modules() if isinstance(m, MoELayer)]
        drawn.append(torch.randn(3))
    assert drawn[0].equal(drawn[1])
    assert len({tuple(r.flatten().tolist()) for r in routers}) == 4


def test_experts_stand_on_the_meta_device_and_pass_bfloat16_through():
    with torch.device("meta"):
        model = llama().bfloat16()
        upcycle(model, MixtureOfExperts())
        assert model(torch.zeros(2, 7, dtype=torch.int64)).logits.shape == (2, 7, 40)
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("make", "moe", "says"),
    [
        (lambda: llama(mlp_bias=True), {}, r"without biases; layer 1 .*LlamaMLP of .*gate_proj\.bias"),
        (
            lambda: Phi3ForCausalLM(Phi3Config(**SIZES, num_attention_heads=4, pad_token_id=0)),
            {},
            r"Phi3MLP of down_proj\.weight, gate_up_proj\.weight",
        ),
        (llama, {"every": 5}, r"every is 5, but the language model has 4 layers"),
        (
            lambda: LlamaForCausalLM(LlamaConfig(**SIZES | {"intermediate_size": 20}, **HEADS)),
            {},
            r"multiples of 8.*16 and 20.*\n.*backend=loop",
        ),
    ],
)
def test_a_language_model_that_cannot_have_experts_is_refused(make, moe, says):
    with pytest.raises(ConfigError, match=says):
        upcycle(make(), MixtureOfExperts(**moe))


def built(architecture: str, moe: dict[str, object] | None) -> AutoregressiveVLM:
    made = plain_model()
    page = {
        "architecture": architecture,
        "cross_attention": {"every": 1} if architecture == "cross_attention" else None,
        "image": made.config.image,
        "connector": made.config.connector,
        "moe": moe,
    }
    torch.manual_seed(0)
    return build_model(Model.model_validate(page), made.vision, made.language)


@pytest.mark.parametrize("architecture", ["autoregressive", "cross_attention"])
def test_a_recipe_s_experts_stand_in_either_architecture_and_are_trained_with_the_language_model(
    architecture,
):
    dense, sparse = built(architecture, None), built(architecture, {"every": 1})
    sparse.enable_activation_checkpointing()
    text = batch(0, 1)
    routing = routing_of(sparse)
    routing.begin(text)
    loss = sparse(text)
    torch.testing.assert_close(loss, dense(text), atol=1e-4, rtol=0)  # a sum over 22 targets
    (loss + routing.loss()).backward()
    assert all(p.grad is not None for p in sparse.parameters())
    assert all(layer.mlp.router.weight.grad.any() for layer in sparse.language.model.layers)
    assert min(routing.sums()) >= 0
    assert {n.split(".")[0] for n, _ in sparse.named_parameters() if ".mlp.experts." in n} == {"language"}


def test_a_stage_with_experts_starts_from_a_dense_one_and_one_with_experts_from_its_own():
    dense, sparse, again = built("autoregressive", None), *(built("autoregressive", {}) for _ in range(2))
    text = batch(0, 1)
    before = {"language": Tuning.model_validate({"lora": {"rank": 2}})}
    attach(dense, before)
    with torch.no_grad():
        for weight in dense.parameters():
            weight += 0.1 * torch.randn_like(weight)
    warm_start(sparse, dense.state_dict(), before, {"language": Tuning()}, "here")
    torch.testing.assert_close(sparse.logits(text), dense.logits(text), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        for weight in sparse.parameters():
            weight += 0.1 * torch.randn_like(weight)
    warm_start(again, sparse.state_dict(), {"language": Tuning()}, {"language": Tuning()}, "here")
    assert again.logits(text).equal(sparse.logits(text))
    with pytest.raises(DataError, match=r"unexpected: language\.model\.layers\.1\.mlp\.experts"):
        warm_start(built("autoregressive", None), sparse.state_dict(), {}, {"language": Tuning()}, "here")


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
