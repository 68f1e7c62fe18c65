"""Planned activations beside what a real forward pass on the CPU leaves for its backward pass."""

from typing import Any

import pytest
import torch

from data_pipeline.image_spec import Perceiver, PixelShuffle
from packed_rows import SPEC, VOCABULARY, pack
from toy_backbones import toy_mistral, toy_tower
from trainer.config import Recipe
from trainer.models.adapters import attach
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.models.build import build_model
from trainer.models.config import Model
from trainer.models.freeze import freeze
from trainer.models.moe.config import MixtureOfExperts
from trainer.planning.activations import kept

WIDTH, LENGTH, ROWS, IMAGES, PATCHES = 64, 256, 3, 8, 16
VISION = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 5, "num_attention_heads": 4}
LANGUAGE = {
    "hidden_size": WIDTH,
    "intermediate_size": 160,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPECTS = {
    "vision": VISION | {"image_size": 32, "patch_size": 8},
    "language": LANGUAGE | {"model_type": "mistral", "vocab_size": VOCABULARY},
    "layout": "tiny",
}
NEW = {"connector": 1.0, "new_tokens": 1.0}
LORA = {"lora": {"rank": 8}}
TRAINS = {
    "connector": NEW,
    "language": NEW | {"language": 1.0},
    "all": NEW | {"language": 1.0, "vision": 1.0},
    "LoRA": NEW | {"language": LORA, "vision": LORA},
    "DoRA": NEW | {"language": {"dora": {"rank": 8}}},
}
PERCEIVER = Perceiver(latents=4, depth=2, heads=2, kv_heads=1, head_dim=16)
MODELS = {
    "pixel shuffle": {"connector": PixelShuffle(factor=2)},
    "perceiver": {"connector": PERCEIVER},
    "experts": {"connector": PixelShuffle(factor=2), "moe": MixtureOfExperts(every=2)},
}


def recipe_of(model: str, train: str, setting: Any) -> Recipe:
    stage = {
        "name": "kept",
        "init_from": "backbones",
        "train": TRAINS[train],
        "mixture": {"any": 1},
        "steps": 1,
        "global_batch": ROWS,
        "micro_batch": ROWS,
        "sequence_length": LENGTH,
        "lr": 1e-3,
        "mask": "causal",  # any other is dense on the CPU, and kept by each layer
        "activation_checkpointing": setting,
    }
    page = Model(image=SPEC, **MODELS[model]).model_dump(mode="json")
    return Recipe.model_validate(
        {"name": "kept", "backbones": {"expects": EXPECTS}, "model": page, "stages": [stage]}
    )


def real_model(recipe: Recipe) -> AutoregressiveVLM:
    stage = recipe.stages[0]
    model = build_model(recipe.model, toy_tower(**VISION), toy_mistral(VOCABULARY, **LANGUAGE), stage.mask)
    attach(model, stage.train)
    freeze(model, stage.train)
    model.enable_activation_checkpointing(stage.activation_checkpointing)
    return model.train()


def read_by_backward(recipe: Recipe) -> int:
    """Bytes of the storages that the backward pass asks the forward pass's graph for, parameters aside."""
    model = real_model(recipe)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    row = [f"{'i ' * IMAGES}g10 w{LENGTH - 10 - 6 * IMAGES}"]
    batch = pack(*[row] * ROWS)
    assert batch.input_ids.shape == (ROWS, LENGTH)
    seen: list[torch.Tensor] = []

    def unpack(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        loss = model(batch)
    loss.backward()
    stores = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in seen}
    return sum(n for pointer, n in stores.items() if pointer not in weights)


def planned(recipe: Recipe) -> int:
    stage = recipe.stages[0]
    found, _ = kept(recipe, stage, torch.float32, PATCHES, 0, stage.activation_checkpointing)
    targets = ROWS * (LENGTH - 10 - 6 * IMAGES)
    return found.total(ROWS, ROWS * IMAGES) + 4 * targets * (WIDTH + VOCABULARY)


def check(model: str, train: str, setting: Any) -> None:
    recipe = recipe_of(model, train, setting)
    assert planned(recipe) == pytest.approx(read_by_backward(recipe), rel=0.15)


SETTINGS = {"all": False, "none": True, "some": {"language": 2, "vision": 3}}
QUICK = [("language", "all"), ("LoRA", "all"), ("LoRA", "none")]


@pytest.mark.parametrize(("train", "setting"), QUICK)
def test_a_forward_pass_keeps_what_is_planned(train, setting):
    check("pixel shuffle", train, SETTINGS[setting])


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("train", TRAINS)
def test_so_it_does_whatever_is_trained_and_recomputed(train, setting):
    check("pixel shuffle", train, SETTINGS[setting])


@pytest.mark.parametrize(("model", "setting"), [("perceiver", "none"), ("experts", "all")])
def test_so_it_does_with_another_connector_or_experts(model, setting):
    check(model, "all", SETTINGS[setting])
