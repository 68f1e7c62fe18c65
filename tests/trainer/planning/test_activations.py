"""Planned activations beside what a real forward pass on the CPU leaves for its backward pass."""

from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data_pipeline.batch import Batch
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
from trainer.planning.activations import kept, loss_bytes

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
WIDE = VISION | {"hidden_size": 192, "intermediate_size": 768}
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
    "wide tower": {"connector": PixelShuffle(factor=2)},
    "experts": {"connector": PixelShuffle(factor=2), "moe": MixtureOfExperts(every=2)},
}


def vision_of(model: str) -> dict[str, int]:
    return WIDE if model == "wide tower" else VISION


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
    expects = EXPECTS | {"vision": EXPECTS["vision"] | vision_of(model)}
    return Recipe.model_validate(
        {"name": "kept", "backbones": {"expects": expects}, "model": page, "stages": [stage]}
    )


def real_model(recipe: Recipe) -> AutoregressiveVLM:
    stage = recipe.stages[0]
    vision = {k: v for k, v in recipe.backbones.expects.vision.items() if k in VISION}
    model = build_model(recipe.model, toy_tower(**vision), toy_mistral(VOCABULARY, **LANGUAGE), stage.mask)
    attach(model, stage.train)
    freeze(model, stage.train)
    model.enable_activation_checkpointing(stage.activation_checkpointing)
    return model.train()


def batch_of() -> Batch:
    row = [f"{'i ' * IMAGES}g10 w{LENGTH - 10 - 6 * IMAGES}"]
    batch = pack(*[row] * ROWS)
    assert batch.input_ids.shape == (ROWS, LENGTH)
    return batch


def read_by_backward(recipe: Recipe) -> int:
    """Bytes of the storages that the backward pass asks the forward pass's graph for, parameters aside."""
    model = real_model(recipe)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    batch = batch_of()
    seen: list[torch.Tensor] = []

    def unpack(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        loss = model(batch)
    loss.backward()
    stores = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in seen}
    return sum(n for pointer, n in stores.items() if pointer not in weights)


class Live(TorchDispatchMode):
    """Bytes of all storages that operations make, at their most, but for `known` tensors."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.most = 0
        self._known = {t.untyped_storage()._cdata for t in known}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._live = {key: found for key, found in self._live.items() if not found[0].expired()}
        self.most = max(self.most, sum(nbytes for _, nbytes in self._live.values()))
        return result


def peak_of(recipe: Recipe) -> int:
    """Bytes of a forward and backward pass at their most, parameters and their gradients aside."""
    model, batch = real_model(recipe), batch_of()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    own = [t for p in model.parameters() for t in (p.data, p.grad) if t is not None]
    with Live(own) as live:
        model(batch).backward()
    return live.most


def planned(recipe: Recipe) -> tuple[int, int]:
    """What is kept, and what there is at most."""
    stage = recipe.stages[0]
    found, _ = kept(recipe, stage, torch.float32, PATCHES, 0, stage.activation_checkpointing)
    targets, images = ROWS * (LENGTH - 10 - 6 * IMAGES), ROWS * IMAGES
    total = found.total(ROWS, images)
    loss = loss_bytes(ROWS * LENGTH, targets, WIDTH, VOCABULARY, 4)
    return total + 4 * targets * (WIDTH + VOCABULARY), max(total + loss, found.most(ROWS, images))


def check(model: str, train: str, setting: Any) -> None:
    recipe = recipe_of(model, train, setting)
    stays, most = planned(recipe)
    assert stays == pytest.approx(read_by_backward(recipe), rel=0.15)
    assert most == pytest.approx(peak_of(recipe), rel=0.15)


SETTINGS = {"all": False, "none": True, "some": {"language": 2, "vision": 2}, "last": {"language": 5}}
QUICK = [("language", "all"), ("LoRA", "all"), ("LoRA", "none")]


@pytest.mark.parametrize(("train", "setting"), QUICK)
def test_a_forward_pass_keeps_what_is_planned(train, setting):
    check("pixel shuffle", train, SETTINGS[setting])


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("train", TRAINS)
def test_so_it_does_whatever_is_trained_and_recomputed(train, setting):
    check("pixel shuffle", train, SETTINGS[setting])


@pytest.mark.parametrize(
    ("model", "setting"), [("perceiver", "none"), ("experts", "all"), ("wide tower", "none")]
)
def test_so_it_does_with_another_connector_experts_or_a_tower_that_takes_most(model, setting):
    check(model, "all", SETTINGS[setting])
