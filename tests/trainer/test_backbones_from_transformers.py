"""Backbones straight from transformers' directories: towers, causal LMs, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Idefics2VisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from data_pipeline.batch import Batch
from data_pipeline.errors import DataError
from data_pipeline.image_spec import ImageSpec, PixelShuffle
from trainer.models.build import build_model
from trainer.models.config import Model
from trainer.models.language import load_language
from trainer.models.vision import load_vision, patch_features

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "layer_norm_eps": 1e-5,
}
LANGUAGE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
KINDS = {
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 3}),
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
    # SmolLM2's shape: a Llama of few key heads, its head tied to its embeddings, another base of rotation.
    "smollm2": (
        LlamaConfig,
        LlamaForCausalLM,
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}},
    ),
}


def written(tmp_path, name, **more):
    torch.manual_seed(0)
    config, model, own = KINDS[name]
    language = model(config(**{**LANGUAGE, **own, **more}))
    language.save_pretrained(tmp_path)
    return language


@pytest.mark.parametrize("name", KINDS)
def test_a_causal_lm_inside_our_model_gives_its_own_logits_and_gradients(tmp_path, name):
    theirs = written(tmp_path, name)
    language = load_language(tmp_path)
    tower = Idefics2VisionTransformer(Idefics2VisionConfig(**TOWER))
    config = Model(image=ImageSpec(longest_edge=56, patch=14), connector=PixelShuffle())
    model = build_model(config, tower, language, "causal")
    ids = torch.randint(0, 40, (2, 9))
    shifted = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], dim=1)
    batch = Batch(
        input_ids=ids,
        labels=shifted,
        positions=torch.arange(9).expand(2, 9),
        document_ids=torch.ones_like(ids),
        image_ids=torch.zeros_like(ids),
        patches=torch.empty(0, 3, 14, 14, dtype=torch.uint8),
        patch_index=torch.empty(0, 3, dtype=torch.int64),
    )
    expected = theirs(input_ids=ids, labels=ids, use_cache=False)
    torch.testing.assert_close(model.logits(batch), expected.logits, rtol=1e-5, atol=1e-5)
    loss = model(batch)
    torch.testing.assert_close(loss / 16, expected.loss)
    loss.backward()
    (expected.loss * 16).backward()
    ours = dict(model.language.named_parameters())
    for key, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours[key].grad, parameter.grad, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_over_new_tokens_is_tied_where_the_language_model_s_is(tmp_path, tied):
    written(tmp_path, "llama", tie_word_embeddings=tied)
    tower = Idefics2VisionTransformer(Idefics2VisionConfig(**TOWER))
    config = Model(image=ImageSpec(longest_edge=56, patch=14), connector=PixelShuffle())
    model = build_model(config, tower, load_language(tmp_path), "causal", predicts_new=True)
    assert (model.new_tokens.head.weight is model.new_tokens.weight) == tied
    hidden = torch.randn(5, 32)
    scores = model.head(hidden)
    assert scores.shape == (5, 43)
    torch.testing.assert_close(scores[:, 40:], hidden @ model.new_tokens.head.weight.T)
    assert scores[:, :40].equal(model.language.lm_head(hidden))


@pytest.mark.parametrize("whole", [False, True])
def test_a_siglip_tower_gives_its_own_features(tmp_path, whole):
    """Of square pictures; the alone-standing tower, and the one of a SigLIP with its text tower."""
    torch.manual_seed(1)
    vision = SiglipVisionConfig(**TOWER)
    if whole:
        text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        siglip = SiglipModel(
            SiglipConfig(vision_config=vision.to_dict(), text_config=text | {"vocab_size": 9})
        )
    else:
        siglip = SiglipVisionModel(vision)
    siglip.save_pretrained(tmp_path)
    tower = load_vision(tmp_path)
    levels = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    patches = levels.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 14, 14)
    index = torch.tensor([(n, r, c) for n in range(2) for r in range(4) for c in range(4)])
    own = siglip.vision_model if whole else siglip
    expected = own(levels.float() / 127.5 - 1).last_hidden_state.flatten(0, 1)
    torch.testing.assert_close(
        patch_features(tower, patches, index, [(4, 4), (4, 4)]), expected, rtol=1e-5, atol=1e-5
    )


def test_so400m_has_its_published_shape():
    """google/siglip-so400m-patch14-384: 27 layers of 1,152 and 729 positions; without the pooling head."""
    shape = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27}
    with torch.device("meta"):
        tower = Idefics2VisionTransformer(
            Idefics2VisionConfig(**shape, num_attention_heads=16, image_size=384, patch_size=14)
        )
        siglip = SiglipVisionModel(
            SiglipVisionConfig(**shape, num_attention_heads=16, image_size=384, patch_size=14)
        )
    count = {n: p.shape for n, p in siglip.named_parameters() if not n.startswith("head.")}
    assert {n: p.shape for n, p in tower.named_parameters()} == count


def altered(directory, change):
    state = load_file(directory / "model.safetensors")
    change(state)
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model.norm.weight"), r"1 missing keys .*model\.norm\.weight"),
        (lambda s: s.update({"model.extra": torch.ones(1)}), r"1 unexpected keys .*model\.extra"),
        (
            lambda s: s.update({"model.norm.weight": torch.ones(3)}),
            r"1 keys of another shape .*norm\.weight \(3,\), expected \(32,\)",
        ),
    ],
)
def test_a_language_model_whose_weights_do_not_fit_is_refused(tmp_path, change, message):
    written(tmp_path, "llama")
    load_language(tmp_path)
    altered(tmp_path, change)
    with pytest.raises(DataError, match=message):
        load_language(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("post_layernorm.bias"), r"1 missing keys .*post_layernorm\.bias"),
        (lambda s: s.update({"heads": torch.ones(1)}), "1 unexpected keys .*heads"),
    ],
)
def test_a_siglip_whose_weights_do_not_fit_is_refused(tmp_path, change, message):
    SiglipVisionModel(SiglipVisionConfig(**TOWER)).save_pretrained(tmp_path)
    load_vision(tmp_path)
    altered(tmp_path, change)
    with pytest.raises(DataError, match=message):
        load_vision(tmp_path)


def test_a_pickle_is_never_read(tmp_path):
    language = written(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    torch.save(language.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model\.bin is a pickle, which is never read"):
        load_language(tmp_path)


def test_sharded_weights_load_and_a_lost_shard_is_named(tmp_path):
    language = written(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    language.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    again = load_language(tmp_path).state_dict()
    assert all(again[k].equal(v) for k, v in language.state_dict().items())
    lost = sorted(set(index["weight_map"].values()))[0]
    (tmp_path / lost).unlink()
    with pytest.raises(DataError, match=lost):
        load_language(tmp_path)


def test_an_index_leads_to_no_other_directory(tmp_path):
    written(tmp_path / "a", "llama")
    written(tmp_path / "b", "llama")
    (tmp_path / "b" / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../a/model.safetensors"}}
    (tmp_path / "b" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="no name of a safetensors file beside it"):
        load_language(tmp_path / "b")


def test_a_cut_file_is_refused(tmp_path):
    written(tmp_path, "llama")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot load"):
        load_language(tmp_path)


def test_a_tower_of_another_kind_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))
    with pytest.raises(DataError, match="'clip_vision_model', allowed are idefics2_vision, siglip_vision"):
        load_vision(tmp_path)
