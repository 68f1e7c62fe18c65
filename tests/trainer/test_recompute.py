"""Activation checkpointing by block: equal gradients, memory in between, and nothing for a frozen tower."""

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from adapted import batch, plain_model, tunings
from data_pipeline.errors import ConfigError
from trainer.config import dump_recipe, load_recipe
from trainer.models.adapters import attach
from trainer.models.freeze import freeze

ADAPTED = tunings("lora")
FULL = tunings("full")
SOME = {"language": 2, "connector": 1}


def prepared(every, train=FULL):
    model = plain_model()
    attach(model, train)
    freeze(model, train)
    model.enable_activation_checkpointing(every)
    return model


def kept_bytes(every, train=FULL) -> int:
    """What the graph of one forward pass keeps beside the parameters themselves."""
    model = prepared(every, train)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)
        return tensor

    held = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model(batch(0, 0))
    return sum(kept.values())


def recomputed(model) -> list[str]:
    return [
        name.split(".")[0] + name[-1]
        for name, layer in model.named_modules()
        if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing
    ]


@pytest.mark.parametrize("train", [FULL, ADAPTED], ids=["full", "lora"])
@pytest.mark.parametrize("every", [True, SOME, {"vision": 1}, {"language": 3}])
def test_gradients_are_those_without_checkpointing(every, train):
    grads = []
    for chosen in (False, every):
        model = prepared(chosen, train)
        model(batch(0, 0)).backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert recomputed(model)
    for name, grad in grads[0].items():
        assert grad.equal(grads[1][name]), name


def test_every_nth_layer_of_a_module_is_recomputed_from_its_first():
    assert recomputed(prepared(True)) == ["vision0", "connector0", "language0", "language1"]
    assert recomputed(prepared({"language": 2})) == ["language0"]
    assert recomputed(prepared({"language": 1, "connector": 5})) == ["connector0", "language0", "language1"]
    assert recomputed(prepared(False)) == recomputed(prepared({})) == []


@pytest.mark.parametrize("train", [FULL, ADAPTED], ids=["full", "lora"])
def test_memory_lies_between_that_of_all_and_of_nothing(train):
    nothing, some, everything = (kept_bytes(every, train) for every in (False, {"language": 2}, True))
    assert 1.2 * everything < some < nothing / 1.2


def test_a_frozen_tower_is_not_recomputed_and_keeps_no_graph():
    train = {name: FULL[name] for name in ("connector", "language")}
    model = prepared({"vision": 1}, train)
    assert recomputed(model) == []
    graphs = []
    for layer in model.vision.encoder.layers:
        layer.register_forward_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    model(batch(0, 0)).backward()
    assert graphs == [False]


def test_a_page_names_all_none_or_every_nth_layer(tmp_path):
    for value, want in (("true", True), ("{language: 2, vision: 1}", {"language": 2, "vision": 1})):
        recipe = load_recipe("tiny", [f"stages.align.activation_checkpointing={value}"])
        assert recipe.stage("align").activation_checkpointing == want
        page = tmp_path / "page.yaml"
        page.write_text(dump_recipe(recipe))
        assert load_recipe(page) == recipe


@pytest.mark.parametrize("value", ["{langauge: 2}", "{language: 0}", "some", "2"])
def test_what_is_neither_is_refused(value):
    with pytest.raises(ConfigError, match="activation_checkpointing"):
        load_recipe("tiny", [f"stages.align.activation_checkpointing={value}"])
