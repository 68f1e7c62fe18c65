"""Our model is transformers' Idefics2: the recorded one, and fresh ones of random weights run beside it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Idefics2Config
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from data_pipeline.batch import IGNORE, Batch
from trainer.models.autoregressive import NEW_TOKENS
from trainer.models.build import build_model
from trainer.models.idefics2 import joined, model_page, places, shapes_of
from trainer.models.weights import load_state

REFERENCE = Path(__file__).parents[3] / "shared/evalref/idefics2_tiny"
EDGES = {"longest_edge": 56, "shortest_edge": 14}


def ours(config: Idefics2Config):
    """Our model of that shape, with random weights."""
    text = type(config.text_config)(
        **{**config.text_config.to_dict(), "vocab_size": config.text_config.vocab_size - NEW_TOKENS}
    )
    text.tie_word_embeddings = config.tie_word_embeddings
    language = AutoModelForCausalLM.from_config(text, attn_implementation="sdpa")
    vision = Idefics2VisionTransformer(config.vision_config)
    return build_model(model_page(config, EDGES), vision, language, "causal", predicts_new=True)


def load_theirs(model, state):
    found = places(shapes_of(model))
    assert {p.name for p in found.values()} == state.keys()
    load_state(model, {n: state[p.name][p.start : p.stop] for n, p in found.items()}, "theirs")
    return model


def theirs_by_ours(model, tensors):
    """Our named tensors put together under their names."""
    found = places(shapes_of(model))
    return {t: torch.cat([tensors[n] for n in names]) for t, names in joined(tensors, found).items()}


def batch_of(input_ids, attention_mask, labels, pixels, pixel_mask, image_token, latents):
    """What transformers is given, as a Batch: padding images left out, grey levels before normalisation."""
    patches, index, grids = [], [], []
    image_ids = torch.zeros_like(input_ids)
    for b, row in enumerate(input_ids):
        spans = (row == image_token).nonzero().flatten().split(latents)
        real = [n for n in range(pixels.shape[1]) if pixels[b, n].any()]
        assert len(real) == len(spans) * bool(len(spans[0]))
        for n, span in zip(real, spans, strict=False):
            rows, columns = (int(pixel_mask[b, n].any(d).sum()) // 14 for d in (1, 0))
            image_ids[b, span] = len(grids) + 1
            cut = pixels[b, n, :, : rows * 14, : columns * 14].unfold(1, 14, 14).unfold(2, 14, 14)
            patches.append(cut.permute(1, 2, 0, 3, 4).flatten(0, 1))
            index += [(len(grids), r, c) for r in range(rows) for c in range(columns)]
            grids.append((rows, columns))
    real = attention_mask.bool()
    shifted = torch.full_like(labels, IGNORE)
    shifted[:, :-1] = labels[:, 1:].where(real[:, 1:], IGNORE)
    levels = (torch.cat([torch.empty(0, 3, 14, 14), *patches]).double() + 1) * 127.5
    return Batch(
        input_ids=input_ids,
        labels=shifted,
        positions=torch.arange(input_ids.shape[1]).expand_as(input_ids),
        document_ids=attention_mask,
        image_ids=image_ids,
        patches=levels.float(),
        patch_index=torch.tensor(index, dtype=torch.int64).view(-1, 3),
        grids=tuple(grids),
    )


@pytest.fixture(scope="module")
def recorded():
    if not REFERENCE.is_dir():
        pytest.skip(f"needs {REFERENCE}")
    config = Idefics2Config(**json.loads((REFERENCE / "config.json").read_text()))
    with np.load(REFERENCE / "weights.npz") as f:
        state = {k: torch.from_numpy(f[k]) for k in f.files}
    with np.load(REFERENCE / "io.npz") as f:
        io = {k: torch.from_numpy(np.asarray(f[k])) for k in f.files}
    batch = batch_of(
        io["input_ids"],
        io["attention_mask"],
        io["labels"],
        io["pixel_values"],
        io["pixel_attention_mask"],
        127,
        4,
    )
    return load_theirs(ours(config), state), io, batch, json.loads((REFERENCE / "expected.json").read_text())


def test_logits_and_image_features_equal_the_recorded_ones(recorded):
    model, io, batch, _ = recorded
    assert (batch.image_ids.max(), len(batch.grids), set(batch.grids)) == (3, 3, {(3, 4), (2, 3)})
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
    grads = theirs_by_ours(model, {n: p.grad for n, p in model.named_parameters()})
    assert grads.keys() == expected["grad_norms"].keys()
    for name, norm in expected["grad_norms"].items():
        # Keys' biases change no softmax: their gradients are rounding alone.
        assert float(grads[name].norm()) == pytest.approx(norm, rel=1e-3, abs=1e-8), name


def test_the_parity_could_fail(recorded):
    """Norms on queries and keys, which the published perceiver has not, would show."""
    model, io, batch, _ = recorded
    layer = model.connector.layers[0]
    layer.query_norm, kept = torch.nn.RMSNorm(12), layer.query_norm
    with torch.no_grad():
        assert (model.logits(batch) - io["logits"])[batch.document_ids > 0].abs().max() > 1e-4
    layer.query_norm = kept
