"""Masks, splice, connectors, loss, freezing and backbones, each against a slow or foreign truth."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_mask
from transformers import Idefics2VisionConfig, MistralConfig, MistralForCausalLM
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from data_pipeline.errors import ConfigError, DataError
from data_pipeline.image_spec import ImageSpec, Perceiver, PixelShuffle
from trainer.models.connector import build_connector, fold
from trainer.models.freeze import freeze, parameter_groups
from trainer.models.language import load_language, window
from trainer.models.loss import target_loss, token_loss
from trainer.models.masks import allowed, dense_mask
from trainer.models.splice import splice
from trainer.models.vision import load_vision, patch_features, save_vision

DOCUMENTS = torch.tensor([[1, 1, 1, 1, 1, 2, 2, 2, 2, 0], [1, 2, 2, 2, 2, 2, 2, 0, 0, 0]])
IMAGES = torch.tensor([[0, 1, 1, 0, 0, 2, 2, 0, 0, 0], [0, 3, 3, 4, 4, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize("kind", ["causal", "image_full"])
@pytest.mark.parametrize("reach", [None, 2])
def test_mask_equals_a_triple_loop_and_fits_block_masks(kind, reach):
    rows, length = DOCUMENTS.shape
    see = allowed(DOCUMENTS, IMAGES, kind, reach)
    dense = dense_mask(see, rows, length, "cpu")
    assert dense.shape == (rows, 1, length, length)
    for b, q, k in itertools.product(range(rows), range(length), range(length)):
        document, image = DOCUMENTS[b].tolist(), IMAGES[b].tolist()
        before = k <= q and (reach is None or q - k < reach)
        same_image = kind == "image_full" and image[q] == image[k] != 0
        want = q == k or (document[q] == document[k] != 0 and (before or same_image))
        assert bool(dense[b, 0, q, k]) == want, (b, q, k)
    assert dense.any(-1).all()
    assert create_mask(see, rows, 1, length, length, device="cpu").equal(dense)
    assert dense_mask(see, rows, length, "cpu", first_query=7).equal(dense[:, :, 7:])


def test_unknown_mask_is_refused():
    with pytest.raises(ValueError, match="image_full"):
        allowed(DOCUMENTS, IMAGES, "full")


def test_splice_puts_each_feature_at_its_place():
    text = torch.randn(2, 10, 4)
    features = torch.randn(4, 2, 4, requires_grad=True)
    out = splice(text, features, IMAGES)
    seen = [0] * 4
    for b, t in itertools.product(range(2), range(10)):
        image = int(IMAGES[b, t])
        want = features[image - 1, seen[image - 1]] if image else text[b, t]
        if image:
            seen[image - 1] += 1
        assert out[b, t].equal(want)
    out.sum().backward()
    assert features.grad.equal(torch.ones_like(features))


def test_splice_refuses_a_mismatch_with_both_counts_and_the_row():
    text = torch.zeros(2, 10, 4)
    with pytest.raises(DataError, match=r"image 1 of 4 \(row 0\): 2 positions .* 3 features"):
        splice(text, torch.zeros(4, 3, 4), IMAGES)
    with pytest.raises(DataError, match=r"image 4 of 3 \(row 1\): 2 positions .* 0 features"):
        splice(text, torch.zeros(3, 2, 4), IMAGES)
    with pytest.raises(DataError, match=r"image 5 of 5 \(in no row\): 0 positions .* 2 features"):
        splice(text, torch.zeros(5, 2, 4), IMAGES)
    with pytest.raises(DataError, match=r"image 1 of 0 \(row 0\)"):
        splice(text, torch.zeros(0, 2, 4), IMAGES)
    with pytest.raises(DataError, match="order"):
        splice(text, torch.zeros(4, 2, 4), IMAGES.flip(0))


def test_pixel_shuffle_equals_a_loop():
    grid, factor, width = 6, 3, 5
    features = torch.randn(2, grid * grid, width)
    folded = fold(features, grid, factor)
    for n, y, x in itertools.product(range(2), range(2), range(2)):
        patches = [
            features[n, (y * factor + dy) * grid + x * factor + dx]
            for dy in range(factor)
            for dx in range(factor)
        ]
        assert folded[n, y * 2 + x].equal(torch.cat(patches))


@pytest.mark.parametrize(
    "config", [PixelShuffle(factor=2), Perceiver(latents=3, depth=2, heads=4, kv_heads=2)]
)
def test_connector_gives_the_promised_tokens(config):
    image = ImageSpec(side=32, patch=8)
    connector = build_connector(config, image, 12, 16)
    for n in (1, 3):
        out = connector(torch.randn(n, 16, 12), torch.ones(n, 4, 4, dtype=torch.bool))
        assert out.shape == (n, image.tokens(config), 16)


def test_perceiver_ignores_padded_patches_and_tells_latents_apart():
    torch.manual_seed(0)
    connector = build_connector(
        Perceiver(latents=3, depth=2, heads=4, kv_heads=2, head_dim=8), ImageSpec(side=32, patch=8), 12, 16
    )
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    mask[:, :, 2:] = False
    features = torch.randn(1, 16, 12)
    other = torch.where(mask.flatten(1)[..., None], features, torch.randn_like(features))
    out = connector(features, mask)
    torch.testing.assert_close(out, connector(other, mask), rtol=0, atol=0)
    assert not torch.allclose(out[0, 0], out[0, 1])
    assert not torch.allclose(out, connector(features, torch.ones_like(mask)))


def test_summed_loss_equals_torch_and_selecting_targets_changes_nothing():
    torch.manual_seed(0)
    head = nn.Linear(8, 11)
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    labels = torch.tensor([[-100, 3, -100, 0, 10], [-100, -100, 1, 1, -100]])
    total, count = target_loss(hidden, labels, head)
    want = F.cross_entropy(head(hidden).flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(total, want)
    assert int(count) == 5
    got = torch.autograd.grad(total, [hidden, head.weight])
    for g, w in zip(got, torch.autograd.grad(want, [hidden, head.weight]), strict=True):
        torch.testing.assert_close(g, w)
    half, _ = token_loss(head(hidden).bfloat16(), labels)
    assert half.dtype == torch.float32


def test_without_targets_the_loss_is_zero_with_a_graph():
    head = nn.Linear(8, 11)
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    total, count = target_loss(hidden, torch.full((2, 5), -100), head)
    assert (total.item(), int(count)) == (0.0, 0)
    total.backward()
    assert head.weight.grad.equal(torch.zeros_like(head.weight))
    assert hidden.grad.equal(torch.zeros_like(hidden))


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision, self.connector = nn.Linear(2, 2), nn.Linear(2, 2)
        self.language, self.new_tokens = nn.Linear(2, 2), nn.Embedding(3, 2)


def test_freeze_and_groups():
    parts, train = Parts(), {"connector": 1.0, "language": 0.1}
    freeze(parts, train)
    on = {n for n, p in parts.named_parameters() if p.requires_grad}
    assert on == {"connector.weight", "connector.bias", "language.weight", "language.bias"}
    groups = parameter_groups(parts, train, lr=0.2, weight_decay=0.5)
    assert [(g["name"], g["lr_scale"], g["weight_decay"]) for g in groups] == [
        ("connector", 1.0, 0.5),
        ("connector.no_decay", 1.0, 0.0),
        ("language", 0.1, 0.5),
        ("language.no_decay", 0.1, 0.0),
    ]
    assert groups[2]["lr"] == pytest.approx(0.02)
    assert sum(p.numel() for g in groups for p in g["params"]) == 12
    torch.optim.AdamW(groups)


@pytest.mark.parametrize("train", [{}, {"visio": 1.0}, {"vision": 0.0}])
def test_freeze_refuses(train):
    with pytest.raises(ConfigError, match="train:"):
        freeze(Parts(), train)


def test_groups_refuse_a_frozen_module():
    parts = Parts()
    freeze(parts, {"connector": 1.0})
    with pytest.raises(ConfigError, match="freeze"):
        parameter_groups(parts, {"vision": 1.0}, 1.0, 0.0)


def tiny_tower() -> Idefics2VisionTransformer:
    torch.manual_seed(0)
    return Idefics2VisionTransformer(
        Idefics2VisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        )
    )


def test_tower_round_trip_and_padding(tmp_path):
    tower = tiny_tower()
    save_vision(tower, tmp_path)
    again = load_vision(tmp_path)
    assert all(a.equal(b) for a, b in zip(tower.parameters(), again.parameters(), strict=True))
    pixels = torch.randn(2, 3, 32, 32)
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    mask[0, 2:], mask[1, :, 3:] = False, False
    features = patch_features(again, pixels, mask)
    assert features.shape == (2, 16, 16)
    assert not features[~mask.flatten(1)].any()
    assert features[mask.flatten(1)].any(-1).all()
    # The padded half says nothing: it may hold anything, or not be there at all.
    noisy = pixels.clone()
    noisy[0, :, 16:] = 7.0
    torch.testing.assert_close(patch_features(again, noisy, mask)[0], features[0])
    alone = patch_features(again, pixels[:1, :, :16], mask[:1, :2])
    torch.testing.assert_close(alone, features[:1, :8], rtol=1e-4, atol=1e-5)


def test_backbones_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no config\.json"):
        load_vision(tmp_path)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    language = MistralForCausalLM(MistralConfig(**small, num_key_value_heads=1, vocab_size=20))
    language.save_pretrained(tmp_path / "language")
    with pytest.raises(DataError, match="model_type is 'mistral'"):
        load_vision(tmp_path / "language")
    assert window(load_language(tmp_path / "language")) == language.config.sliding_window
    tower = tiny_tower()
    state = {k: v for k, v in tower.state_dict().items() if "layers.1" not in k}
    tower.save_pretrained(tmp_path / "torn", state_dict=state)
    with pytest.raises(DataError, match="missing keys"):
        load_vision(tmp_path / "torn")
