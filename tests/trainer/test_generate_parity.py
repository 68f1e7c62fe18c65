"""Greedy continuations equal those of transformers' Idefics2, token for token: recorded and fresh weights."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Idefics2Config, Idefics2ForConditionalGeneration
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

import idefics2_like
from data_pipeline.stream.decode import Picture
from trainer.evaluation.generate import Prompt, generate
from trainer.models.autoregressive import NEW_TOKENS
from trainer.models.build import build_model
from trainer.models.idefics2 import model_page, places, shapes_of
from trainer.models.weights import load_state

REFERENCE = Path(__file__).parents[3] / "shared/evalref/idefics2_tiny"
STEPS = 16


def recorded():
    if not REFERENCE.is_dir():
        pytest.skip(f"needs {REFERENCE}")
    config = Idefics2Config(**json.loads((REFERENCE / "config.json").read_text()))
    theirs = Idefics2ForConditionalGeneration(config).eval()
    with np.load(REFERENCE / "weights.npz") as f:
        theirs.load_state_dict({k: torch.from_numpy(f[k]) for k in f.files})
    return theirs


WEIGHTS = {
    "recorded": recorded,
    "fresh": lambda: idefics2_like.model(idefics2_like.config(), seed=1),
    "fresh llama": lambda: idefics2_like.model(idefics2_like.config("llama"), seed=2),
}


def ours(theirs):
    """Our model with the weights of theirs."""
    config, state = theirs.config, dict(theirs.named_parameters())
    text = type(config.text_config)(
        **{**config.text_config.to_dict(), "vocab_size": config.text_config.vocab_size - NEW_TOKENS}
    )
    vision = Idefics2VisionTransformer(copy.deepcopy(config.vision_config))
    patch = config.vision_config.patch_size
    page = model_page(config, {"longest_edge": 4 * patch, "shortest_edge": patch})
    language = AutoModelForCausalLM.from_config(text, attn_implementation="sdpa")
    model = build_model(page, vision, language, "causal", predicts_new=True)
    found = places(shapes_of(model))
    load_state(model, {n: state[p.name].detach()[p.start : p.stop] for n, p in found.items()}, "theirs")
    return model.eval()


def drawn(config, grids, seed):
    """A prompt of text and pictures by turns: ours, and transformers' inputs."""
    patch, latents = config.vision_config.patch_size, config.perceiver_config.resampler_n_latents
    draw = np.random.default_rng(seed)
    words = min(config.text_config.vocab_size - NEW_TOKENS, config.image_token_id)
    ids, images, pictures = draw.integers(3, words, 3).tolist(), [0] * 3, []
    height, width = (max((g[side] for g in grids), default=1) * patch for side in (0, 1))
    levels = np.zeros((1, len(grids), 3, height, width), np.uint8)
    mask = np.zeros((1, len(grids), height, width), bool)
    for n, (rows, columns) in enumerate(grids):
        blocks = draw.integers(0, 256, (rows * columns, 3, patch, patch), dtype=np.uint8)
        pictures.append(Picture.of(blocks, (rows, columns)))
        whole = blocks.reshape(rows, columns, 3, patch, patch).transpose(2, 0, 3, 1, 4)
        levels[0, n, :, : rows * patch, : columns * patch] = whole.reshape(3, rows * patch, columns * patch)
        mask[0, n, : rows * patch, : columns * patch] = True
        text = draw.integers(3, words, int(draw.integers(1, 5))).tolist()
        ids += [config.image_token_id] * latents + text
        images += [n + 1] * latents + [0] * len(text)
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
    if grids:
        inputs["pixel_values"] = torch.from_numpy(levels).float() / 127.5 - 1
        inputs["pixel_attention_mask"] = torch.from_numpy(mask)
    return Prompt(ids, images, pictures), inputs


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_batch_of_ours_continues_each_prompt_as_transformers_does(weights):
    theirs = WEIGHTS[weights]()
    model = ours(theirs)
    theirs.generation_config.eos_token_id = None
    pages = [((2, 3),), (), ((4, 4), (1, 2)), ((3, 2), (3, 2), (2, 4))]  # pictures in several turns
    # From seeds after which nobody writes a placeholder: transformers would look for its picture.
    pairs = [drawn(theirs.config, grids, seed) for seed, grids in enumerate(pages, start=4)]
    found = generate(model, [p for p, _ in pairs], max_new_tokens=STEPS, eos_id=None, pad_id=0)
    for row, (prompt, inputs) in zip(found, pairs, strict=True):
        want = theirs.generate(**inputs, max_new_tokens=STEPS, do_sample=False, pad_token_id=0)
        assert row == want[0, inputs["input_ids"].shape[1] :].tolist()
        assert generate(model, [prompt], max_new_tokens=STEPS, eos_id=None, pad_id=0) == [row]
    assert len({tuple(row) for row in found}) == len(found)  # they say something of their prompts
