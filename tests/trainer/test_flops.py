"""The formulas count what PyTorch's own counter sees in a real forward and backward pass."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Idefics2VisionConfig, MistralConfig, MistralForCausalLM
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from data_pipeline.batch import Batch
from data_pipeline.image_spec import ImageSpec, Perceiver, PixelShuffle
from trainer.models.adapters import attach
from trainer.models.build import build_model
from trainer.models.config import CrossAttention, Model
from trainer.models.flops import Flops, Load, causal_pairs, forward, full_pairs, training
from trainer.models.freeze import freeze
from trainer.models.moe.config import MixtureOfExperts
from trainer.models.tuning import Tuning
from trainer.models.vision import patch_features

VISION = {
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
LANGUAGE = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": None,
}
IMAGE = ImageSpec(longest_edge=32, patch=8)
READER = Perceiver(latents=4, depth=2, heads=2, kv_heads=1, head_dim=8, projection_width=24)
MODELS = {
    "pixel shuffle": Model(image=IMAGE, connector=PixelShuffle()),
    "perceiver": Model(image=IMAGE, connector=READER),
    "cross-attention": Model(
        architecture="cross_attention", image=IMAGE, connector=READER, cross_attention=CrossAttention(every=2)
    ),
    "experts": Model(image=IMAGE, connector=READER, moe=MixtureOfExperts(backend="loop")),
}
ROWS, LENGTH = 2, 24
LORA = {"lora": {"rank": 3}}
STAGES = {
    "connector alone": {"connector": 1.0},
    "language too": {"connector": 1.0, "new_tokens": 1.0, "language": 1.0},
    "all in full": {"vision": 1.0, "connector": 1.0, "language": 1.0},
    "LoRA on both backbones": {"vision": LORA, "connector": 1.0, "language": LORA},
    "LoRA everywhere": {"vision": LORA, "connector": LORA, "language": LORA},
    "LoRA on some layers": {
        "connector": 1.0,
        "language": {"lora": {"rank": 3, "targets": ["q_proj", "k_proj", "v_proj", "lm_head"]}},
    },
    "blocks": {"cross_attention": 1.0},
    "LoRA on blocks": {"cross_attention": LORA, "connector": 1.0, "new_tokens": 1.0},
    "the tower alone": {"vision": 1.0},
    "the language model alone": {"language": 1.0},
}


def built(model: Model, train=None):
    torch.manual_seed(0)
    vision = Idefics2VisionTransformer(Idefics2VisionConfig(**VISION))
    vlm = build_model(model, vision, MistralForCausalLM(MistralConfig(**LANGUAGE)), "causal")
    if train:
        attach(vlm, train)
        freeze(vlm, train)
    return vlm


def batch_of(model: Model) -> Batch:
    """Two rows of one document each, with a picture of 4 x 4 patches."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 48, (ROWS, LENGTH), generator=draw)
    labels = torch.cat([ids[:, 1:], torch.full((ROWS, 1), -100)], dim=1)
    image_ids = torch.zeros_like(ids)
    image_ids[:, 1 : 1 + model.image_tokens] = torch.tensor([[1], [2]])
    labels[:, : 1 + model.image_tokens] = -100
    grids = ((4, 4), (4, 4))
    index = [(n, i // 4, i % 4) for n in range(2) for i in range(16)]
    return Batch(
        input_ids=ids,
        labels=labels,
        positions=torch.arange(LENGTH).expand(ROWS, LENGTH),
        document_ids=torch.ones_like(ids),
        image_ids=image_ids,
        patches=torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8, generator=draw),
        patch_index=torch.tensor(index),
        grids=grids,
    )


def load_of(batch: Batch) -> Load:
    """As PyTorch's counter sees it: attention over all pairs of a document, whatever the mask."""
    return Load(
        patches=tuple(r * c for r, c in batch.grids),
        tokens=ROWS * LENGTH,
        pairs=ROWS * LENGTH**2,
        targets=int(batch.target_tokens),
        read=ROWS * LENGTH * 4,
    )


def counted(run) -> int:
    # The plain products of attention: fused kernels also count what they compute again.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", MODELS)
def test_a_forward_pass_has_the_operations_of_the_formula(name):
    model = MODELS[name]
    batch, vlm = batch_of(model), built(model).eval().requires_grad_(False)
    assert counted(lambda: vlm(batch)) == forward(model, VISION, LANGUAGE, load_of(batch)).total


def test_each_component_has_its_own():
    model = MODELS["perceiver"]
    batch, vlm = batch_of(model), built(model).eval().requires_grad_(False)
    expected = forward(model, VISION, LANGUAGE, load_of(batch))
    features = patch_features(vlm.vision, batch.patches, batch.patch_index, batch.grids)
    hidden = torch.zeros(expected_targets := int(batch.target_tokens), 32)
    found = Flops(
        vision=counted(lambda: patch_features(vlm.vision, batch.patches, batch.patch_index, batch.grids)),
        connector=counted(lambda: vlm.connector(features, batch.patch_index, batch.grids)),
        head=counted(lambda: vlm.head(hidden)),
        language=expected.language,
    )
    assert expected_targets < ROWS * LENGTH
    assert found == expected


@pytest.mark.parametrize(
    ("name", "stage"), [(n, s) for n in MODELS for s in STAGES if STAGES[s].keys() <= set(MODELS[n].modules)]
)
def test_a_training_step_has_the_operations_of_the_formula(name, stage):
    model = MODELS[name]
    train = {module: Tuning.model_validate(value) for module, value in STAGES[stage].items()}
    batch, vlm = batch_of(model), built(model, train).train()
    expected = training(model, VISION, LANGUAGE, load_of(batch), train)
    assert counted(lambda: vlm(batch).backward()) == expected.total


@pytest.mark.parametrize("window", [None, 3])
def test_pairs_are_those_of_a_mask(window):
    lengths = [1, 2, 7]
    brute = sum(
        1
        for n in lengths
        for q in range(n)
        for k in range(n)
        if k <= q and (window is None or q - k < window)
    )
    assert causal_pairs(lengths, window) == brute


def test_spans_that_see_themselves_whole_have_the_other_half_of_their_pairs():
    assert causal_pairs([5]) + full_pairs([5]) == 25


def test_dora_counts_as_lora():
    """Its norms of weights are the same work for one token and for a million."""
    model, load = MODELS["perceiver"], load_of(batch_of(MODELS["perceiver"]))
    lora, dora = (
        {"language": Tuning.model_validate({kind: {"rank": 3}}), "connector": Tuning()}
        for kind in ("lora", "dora")
    )
    assert training(model, VISION, LANGUAGE, load, lora) == training(model, VISION, LANGUAGE, load, dora)
