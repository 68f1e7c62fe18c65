"""Other kernels in the language model change no value, no gradient and no name, under ZeRO-3 too.

Without a GPU torch's operators stand in for Liger's, written as autograd functions with its contract: weights
are kept from the forward to the backward pass, and what SwiGLU has kept is overwritten with its gradients.
"""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from deepspeed.utils import safe_get_full_grad
from torch import nn
from torch.nn import functional as F
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from data_pipeline.errors import ConfigError
from ranks import on_ranks
from trainer.config import load_recipe
from trainer.distributed import World, all_sum
from trainer.engine.ds_config import merge_ds_config
from trainer.engine.initialize import initialize
from trainer.models.adapters import attach
from trainer.models.kernels import Kernels, fuse, liger_kernels
from trainer.models.loss import target_loss
from trainer.models.moe.config import MixtureOfExperts
from trainer.models.moe.layer import upcycle
from trainer.models.recompute import recompute
from trainer.models.tuning import Tuning
from trainer.run import fingerprints_of

ON_CUDA = torch.cuda.is_available() and find_spec("liger_kernel") is not None
VOCABULARY = 40
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-3,  # large enough to be missed
}
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM),
}
LORA = Tuning.model_validate({"lora": {"rank": 4}})


class PlainRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, epsilon):
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, scale)
        return weight * (x.float() * scale).to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        x, weight, scale = ctx.saved_tensors
        normed, d = x.float() * scale, (dy * weight).float()
        dx = scale * (d - normed * (d * normed).mean(-1, keepdim=True))
        return dx.to(x.dtype), (dy * normed.to(x.dtype)).flatten(0, -2).sum(0), None


class PlainSiLUMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx, dy):
        gate, up = ctx.saved_tensors
        s = torch.sigmoid(gate.float())
        d_gate, d_up = dy * (s + gate * s * (1 - s)) * up, dy * F.silu(gate)
        gate.data.copy_(d_gate)  # past autograd's eyes, as a kernel does
        up.data.copy_(d_up)
        return gate, up


PLAIN = Kernels(PlainRMSNorm.apply, PlainSiLUMul.apply)


class Text(nn.Module):
    """A language model under the project's own loss."""

    def __init__(self, language: PreTrainedModel) -> None:
        super().__init__()
        self.language = language

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.language.base_model(input_ids=ids[:, :-1]).last_hidden_state
        return target_loss(hidden, ids[:, 1:], self.language.get_output_embeddings(), chunk=8)[0]


def language_of(kind: str, **more) -> PreTrainedModel:
    """Norms are drawn too: at all ones a kernel that forgets the weight would look right."""
    torch.manual_seed(0)
    config, model = KINDS[kind]
    language = model(config(**SIZES, **more)).train()
    for name, parameter in language.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return language


def text_of(kind: str, adapted: bool, kernels: Kernels | None, dtype: torch.dtype = torch.float32) -> Text:
    text = Text(language_of(kind))
    if kernels is not None:
        fuse(text.language, kernels)
    if adapted:
        attach(text, {"language": LORA})
        for name, parameter in text.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    recompute(text.language, 2)
    return text.to(dtype)


def rows(rank: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, 7 + rank), generator=torch.Generator().manual_seed(rank))


def gradients(text: Text, ranks: int) -> tuple[float, dict[str, torch.Tensor]]:
    """One process: the summed loss of all ranks' rows, and its gradients."""
    device = next(text.parameters()).device
    loss = sum(text(rows(rank).to(device)) for rank in range(ranks))
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in text.named_parameters() if p.grad is not None}


def on_a_rank(
    world: World, cases: list[tuple[str, bool]], precision: str, fused: bool = True
) -> list[tuple[float, dict[str, torch.Tensor]]]:
    """The same of this rank's rows under ZeRO-3, nothing kept whole; on CUDA by Liger's kernels."""
    kernels = None
    if fused:
        kernels = PLAIN if world.device.type == "cpu" else liger_kernels()
    zero3 = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
    config = merge_ds_config(zero3, micro_batch=2, accumulation=1, world_size=world.size, clip=0.0)
    if precision == "bf16":
        config["bf16"] = {"enabled": True}
    seen = []
    for kind, adapted in cases:
        text = text_of(kind, adapted, kernels)
        groups = [{"params": [p for p in text.parameters() if p.requires_grad]}]
        engine = initialize(text, groups, config, lr=1e-3, betas=(0.9, 0.95))
        assert not any(p.numel() for p in text.parameters())
        loss = engine(rows(world.rank).to(world.device))
        engine.backward(loss * world.size)  # the ranks' gradients are averaged
        found = {n: safe_get_full_grad(p).cpu() for n, p in text.named_parameters() if p.requires_grad}
        seen.append((all_sum(world, float(loss.detach()))[0], found))
    return seen


def ranks_agree(ranks: int, device: str, precision: str, tolerance: float) -> None:
    """With torch's operators: in one process, or in bf16, where ZeRO-3 itself rounds, on such ranks."""
    cases = [("mistral", False), ("qwen3", True)]
    if precision == "fp32":
        wanted = [gradients(text_of(*case, None).to(device), ranks) for case in cases]
    else:
        wanted = on_ranks(on_a_rank, cases, precision, False, ranks=ranks, device=device)[0]
    for rank in on_ranks(on_a_rank, cases, precision, ranks=ranks, device=device):
        for found, want in zip(rank, wanted, strict=True):
            agree(found, want, tolerance)


def agree(
    ours: tuple[float, dict[str, torch.Tensor]],
    exactly: tuple[float, dict[str, torch.Tensor]],
    tolerance: float,
) -> None:
    """The loss to `tolerance` of itself, each gradient to that of its largest value."""
    (loss, found), (want, grads) = ours, exactly
    assert loss == pytest.approx(want, rel=tolerance)
    assert found.keys() == grads.keys()
    for name, grad in grads.items():
        difference = float((found[name].float().cpu() - grad.float().cpu()).abs().max())
        assert difference <= tolerance * max(1.0, float(grad.abs().max())), (name, difference)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_values_gradients_and_names_stay(kind, dtype, tolerance):
    ours, exactly = (text_of(kind, kind == "llama", k, dtype) for k in (PLAIN, None))
    assert list(ours.state_dict()) == list(exactly.state_dict())
    agree(gradients(ours, 2), gradients(exactly, 2), tolerance)


def test_every_norm_and_every_dense_ffn_is_replaced_and_nothing_else():
    language = language_of("qwen3")
    upcycle(language, MixtureOfExperts(every=2))
    fuse(language, PLAIN)
    norms = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
    assert {n for n, m in language.named_modules() if "forward" in vars(m)} == {
        "model.norm",
        "model.layers.0.mlp",
        *(f"model.layers.{layer}.{norm}" for layer in range(2) for norm in norms),
    }


@pytest.mark.timeout(1800)
def test_two_ranks_under_zero3_have_the_values_and_gradients_of_torch_in_one_process():
    ranks_agree(2, "cpu", "fp32", 1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not ON_CUDA, reason="needs CUDA and liger-kernel")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_liger_under_zero3_has_the_values_and_gradients_of_torch(precision, tolerance):
    ranks_agree(min(2, torch.cuda.device_count()), "cuda", precision, tolerance)


def test_a_language_model_that_the_kernels_would_not_reproduce_is_refused():
    for language in (language_of("olmo2"), language_of("llama", hidden_act="gelu")):
        with pytest.raises(ConfigError, match=r"llama, mistral, qwen2, qwen3.*\n.*kernels=torch"):
            fuse(language, PLAIN)
        assert not any("forward" in vars(m) for m in language.modules())


@pytest.mark.skipif(ON_CUDA, reason="here they run")
def test_asked_for_where_they_cannot_run_nothing_is_trained(run_dir, fovea):
    done = fovea(
        "train", run_dir / "recipe.yaml", "--run", run_dir, "--stage", "align", "stages.align.kernels=liger"
    )
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert "kernels is liger, which needs" in done.stderr
    if find_spec("liger_kernel") is None:
        assert "pip install 'fovea-vlm[gpu]'" in done.stderr
    assert not list((run_dir / "align").glob("checkpoints/*"))


def test_kernels_and_compile_exclude_each_other():
    load_recipe("tiny", ["stages.align.kernels=liger"])
    with pytest.raises(ConfigError, match="'align': compile and kernels=liger"):
        load_recipe("tiny", ["stages.align.kernels=liger", "stages.align.compile=true"])


def test_a_checkpoint_may_go_on_with_other_kernels():
    given = SimpleNamespace(digest="d", fingerprint="f")

    def compared(*overrides: str) -> dict[str, object]:
        recipe = load_recipe("tiny", list(overrides))
        return fingerprints_of(recipe, recipe.stage("align"), given, given)

    assert compared() == compared("stages.align.kernels=liger")
    assert compared() != compared("stages.align.lr=1")
