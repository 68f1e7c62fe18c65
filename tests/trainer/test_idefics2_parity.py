"""Our model is transformers' Idefics2: the recorded one, and fresh ones of random weights run beside it."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Idefics2Config, Idefics2ForConditionalGeneration
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

import idefics2_like
from idefics2_like import IMAGE, LATENTS, batch_of
from trainer.export.importing import skeleton
from trainer.models.autoregressive import NEW_TOKENS
from trainer.models.build import build_model
from trainer.models.idefics2 import joined, model_page, places, shapes_of
from trainer.models.weights import load_state

REFERENCE = Path(__file__).parents[3] / "shared/evalref/idefics2_tiny"


def ours(config: Idefics2Config, state):
    """Our model of that shape, with their weights."""
    text = type(config.text_config)(
        **{**config.text_config.to_dict(), "vocab_size": config.text_config.vocab_size - NEW_TOKENS}
    )
    text.tie_word_embeddings = config.tie_word_embeddings
    language = AutoModelForCausalLM.from_config(text, attn_implementation="sdpa")
    vision = Idefics2VisionTransformer(copy.deepcopy(config.vision_config))
    patch = config.vision_config.patch_size
    page = model_page(config, {"longest_edge": 4 * patch, "shortest_edge": patch})
    model = build_model(page, vision, language, "causal", predicts_new=True)
    found = places(shapes_of(model))
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    assert {p.name for p in found.values()} == state.keys() - tied
    load_state(model, {n: state[p.name][p.start : p.stop] for n, p in found.items()}, "theirs")
    return model


def under_their_names(model, tensors):
    parts = joined(tensors, places(shapes_of(model)))
    return {theirs: torch.cat([tensors[n] for n in names]) for theirs, names in parts.items()}


@pytest.fixture(scope="module")
def recorded():
    if not REFERENCE.is_dir():
        pytest.skip(f"needs {REFERENCE}")
    config = Idefics2Config(**json.loads((REFERENCE / "config.json").read_text()))
    with np.load(REFERENCE / "weights.npz") as f:
        state = {k: torch.from_numpy(f[k]) for k in f.files}
    with np.load(REFERENCE / "io.npz") as f:
        io = {k: torch.from_numpy(np.asarray(f[k])) for k in f.files}
    # Its pixels are no grey levels; ours are normalised in the tower, so the inverse goes in.
    levels = ((io["pixel_values"].double() + 1) * 127.5).float()
    batch = batch_of(
        *(io[k] for k in ("input_ids", "attention_mask", "labels")),
        levels,
        io["pixel_attention_mask"],
        image_token=127,
        latents=4,
        patch=14,
    )
    return ours(config, state), io, batch, json.loads((REFERENCE / "expected.json").read_text())


def test_logits_and_image_features_equal_the_recorded_ones(recorded):
    model, io, batch, _ = recorded
    assert (batch.image_ids.max(), batch.grids) == (3, ((3, 4), (2, 3), (3, 4)))
    real = batch.document_ids > 0
    with torch.no_grad():
        assert (model.logits(batch) - io["logits"])[real].abs().max() < 1e-5
        features = model.embed(batch)[batch.image_ids > 0]
    assert (features - io["image_hidden_states"]).abs().max() < 1e-5


def test_loss_and_gradient_norms_equal_the_recorded_ones(recorded):
    model, _, batch, expected = recorded
    model.zero_grad()
    loss = model(batch) / batch.target_tokens
    loss.backward()
    assert loss.item() == pytest.approx(4.904447, abs=1e-5)
    grads = under_their_names(model, {n: p.grad for n, p in model.named_parameters()})
    assert grads.keys() == expected["grad_norms"].keys()
    for name, norm in expected["grad_norms"].items():
        # Keys' biases change no softmax: their gradients are rounding alone.
        assert float(grads[name].norm()) == pytest.approx(norm, rel=1e-3, abs=1e-8), name


def test_the_recorded_logits_are_missed_with_norms_on_queries_and_keys(recorded):
    """The comparison could fail: transformers' perceiver has no such norms."""
    model, io, batch, _ = recorded
    layer = model.connector.layers[0]
    layer.query_norm, kept = torch.nn.RMSNorm(12), layer.query_norm
    with torch.no_grad():
        assert (model.logits(batch) - io["logits"])[batch.document_ids > 0].abs().max() > 1e-4
    layer.query_norm = kept


def inputs(*rows, seed=0, length=26, size=(30, 37)):
    """Rows of pictures, each (height, width) in pixels; texts of random length around them, padded behind.

    -> what transformers takes, its labels, and the grey levels [B, N, 3, H, W].
    """
    draw = torch.Generator().manual_seed(seed)
    most = max(1, *(len(r) for r in rows))
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    levels = torch.zeros(len(rows), most, 3, *size, dtype=torch.uint8)
    seen = torch.zeros(len(rows), most, *size, dtype=torch.bool)
    for b, pictures in enumerate(rows):
        row = [1]
        for n, (height, width) in enumerate(pictures):
            row += torch.randint(3, 57, (2,), generator=draw).tolist()
            row += [57, *[IMAGE] * LATENTS, 57]
            seen[b, n, :height, :width] = True
            levels[b, n, :, :height, :width] = torch.randint(
                0, 256, (3, height, width), dtype=torch.uint8, generator=draw
            )
        row += [*torch.randint(3, 57, (3 + 2 * b,), generator=draw).tolist(), 59]
        ids[b, : len(row)], mask[b, : len(row)] = torch.tensor(row), 1
    labels = ids.masked_fill((ids == IMAGE) | (ids == 57) | (mask == 0), -100)
    given = {"input_ids": ids, "attention_mask": mask}
    if any(rows):
        pixels = (levels.float() / 127.5 - 1) * seen[:, :, None]
        given |= {"pixel_values": pixels, "pixel_attention_mask": seen}
    return given, labels, batch_of(ids, mask, labels, levels, seen)


KINDS = {
    "mistral": {"sliding_window": None},
    "mistral, sliding window": {"sliding_window": 5},
    "llama, tied": {"tie_word_embeddings": True},
    "qwen2": {},
}
# Heights and widths that are no multiple of the patch: what fills none is left out on both sides.
ROWS = {
    "several pictures and padding ones": [[(30, 37), (8, 37)], [(19, 11)], []],
    "one picture a row": [[(16, 16)], [(24, 32)]],
    "no picture": [[], []],
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_idefics2_gives_the_same_logits_loss_and_gradients(kind, rows):
    config = idefics2_like.config(kind.split(",")[0], **KINDS[kind])
    theirs = idefics2_like.model(config)
    model = ours(config, theirs.state_dict())
    given, labels, batch = inputs(*ROWS[rows])
    assert len(batch.grids) == sum(len(r) for r in ROWS[rows])
    expected = theirs(**given, labels=labels, use_cache=False)
    real = batch.document_ids > 0
    torch.testing.assert_close(model.logits(batch)[real], expected.logits[real], rtol=1e-5, atol=1e-5)
    loss = model(batch) / batch.target_tokens
    torch.testing.assert_close(loss, expected.loss)
    loss.backward()
    expected.loss.backward()
    parts = joined(shapes_of(model), places(shapes_of(model)))
    gradients = under_their_names(model, {n: p.grad for n, p in model.named_parameters()})
    reached = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    assert reached.keys() == parts.keys() if batch.grids else reached.keys() < parts.keys()
    for name, gradient in reached.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_another_picture_gives_other_logits():
    """The comparison above could fail: pixels reach the logits of both."""
    config = idefics2_like.config()
    model = ours(config, idefics2_like.model(config).state_dict())
    (_, _, one), (_, _, two) = (inputs([(16, 16)], seed=s) for s in (0, 1))
    with torch.no_grad():
        other = model.logits(batch_with(one, two.patches))
        assert (model.logits(one) - other).abs().max() > 1e-3


def batch_with(batch, patches):
    return type(batch)(**{**vars(batch), "patches": patches})


PUBLISHED = {
    "image_token_id": 32001,
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 980,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
    "perceiver_config": {
        "hidden_size": 4096,
        "rms_norm_eps": 1e-5,
        "resampler_n_latents": 64,
        "resampler_depth": 3,
        "resampler_n_heads": 16,
        "resampler_head_dim": 96,
        "num_key_value_heads": 4,
    },
    "text_config": {"model_type": "mistral", "vocab_size": 32003, "pad_token_id": 0, "rms_norm_eps": 1e-5},
}
"""HuggingFaceM4/idefics2-8b: SigLIP-SO400M with 70 x 70 positions, Mistral-7B-v0.1, three added tokens."""


def test_the_8b_has_every_parameter_of_the_published_one():
    """On the meta device: names, shapes and their number, 8.4 billion, are those of transformers' class."""
    config = Idefics2Config(**PUBLISHED)
    with torch.device("meta"):
        theirs = Idefics2ForConditionalGeneration(config)
    model = skeleton(config, model_page(config, {"longest_edge": 980, "shortest_edge": 378}))
    shapes = shapes_of(model)
    count = {m: sum(p.numel() for p in getattr(model, m).parameters()) for m in PARAMETERS}
    assert count == PARAMETERS
    assert sum(count.values()) == sum(p.numel() for p in theirs.parameters()) == 8_402_768_112
    found = {
        name: (sum(shapes[o][0] for o in names), *shapes[names[0]][1:])
        for name, names in joined(shapes, places(shapes)).items()
    }
    assert found == {n: tuple(p.shape) for n, p in theirs.named_parameters()}
    assert model.config.image_tokens == 64


PARAMETERS = {
    "vision": 417_792_240,
    "connector": 743_219_200,
    "language": 7_241_732_096,  # Mistral-7B-v0.1
    "new_tokens": 2 * 3 * 4096,
}
