"""A mixture begins as the dense model that it is made of."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from adapted import batch, plain_model
from data_pipeline.errors import ConfigError, DataError
from mixtures import HEADS, SIZES, WIDTH, llama, mistral, qwen
from trainer.models.adapters import attach, warm_start
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.models.build import build_model
from trainer.models.config import Model
from trainer.models.moe.config import MixtureOfExperts
from trainer.models.moe.layer import MoELayer, active_parameters, routing_of, upcycle
from trainer.models.tuning import Tuning


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
