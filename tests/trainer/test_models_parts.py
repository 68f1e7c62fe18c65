"""Splice, connectors, freezing and backbones, each against a slow or foreign truth."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import Idefics2VisionConfig, MistralConfig, MistralForCausalLM
from transformers.models.idefics2.modeling_idefics2 import (
    Idefics2VisionEmbeddings,
    Idefics2VisionTransformer,
)

from data_pipeline.errors import ConfigError, DataError
from data_pipeline.image_spec import ImageSpec, Perceiver, PixelShuffle
from trainer.models.connector import build_connector, fold
from trainer.models.freeze import freeze, parameter_groups
from trainer.models.language import load_language, window
from trainer.models.splice import splice
from trainer.models.vision import ATTENTION, load_vision, patch_features, position_ids, save_vision

IMAGE = ImageSpec(longest_edge=32, patch=8)
IMAGES = torch.tensor([[0, 1, 1, 0, 0, 2, 2, 0, 0, 0], [0, 3, 3, 4, 4, 0, 0, 0, 0, 0]])


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
    connector = build_connector(config, IMAGE, 12, 16)
    for grids in ([(4, 4)], [(1, 1), (3, 4), (4, 2)]):
        index = patch_index(grids)
        out = connector(torch.randn(len(index), 12), index, grids)
        assert out.shape == (len(grids), IMAGE.tokens(config), 16)


def test_pixel_shuffle_pads_each_image_to_the_square_with_zeros():
    torch.manual_seed(0)
    connector = build_connector(PixelShuffle(factor=2), IMAGE, 12, 16)
    grids = [(3, 2), (4, 4), (1, 3)]
    index = patch_index(grids)
    features = torch.randn(len(index), 12, requires_grad=True)
    squares = torch.zeros(3, 4, 4, 12)
    for (n, row, column), value in zip(index.tolist(), features.detach(), strict=True):
        squares[n, row, column] = value
    want = connector.down(F.gelu(connector.up(fold(squares.flatten(1, 2), 4, 2))))
    out = connector(features, index, grids)
    torch.testing.assert_close(out, want)
    out.sum().backward()
    assert features.grad.any(-1).all()


def test_perceiver_reads_an_images_own_patches_and_tells_latents_apart():
    torch.manual_seed(0)
    config = Perceiver(latents=3, depth=2, heads=4, kv_heads=2, head_dim=8)
    connector = build_connector(config, IMAGE, 12, 16)
    grids = [(2, 2), (4, 3), (1, 1)]
    index = patch_index(grids)
    features = torch.randn(len(index), 12, requires_grad=True)
    out = connector(features, index, grids)
    for n, grid in enumerate(grids):
        own = features[index[:, 0] == n]
        torch.testing.assert_close(connector(own, patch_index([grid]), [grid]), out[n : n + 1])
    (got,) = torch.autograd.grad(out[1].sum(), features)
    assert got.any(-1).equal(index[:, 0] == 1)
    assert not torch.allclose(out[0, 0], out[0, 1])


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


def tiny_tower(**changes) -> Idefics2VisionTransformer:
    torch.manual_seed(0)
    config = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    return Idefics2VisionTransformer(Idefics2VisionConfig(**(config | changes)))


def patch_index(grids) -> torch.Tensor:
    places = [(n, i // c, i % c) for n, (r, c) in enumerate(grids) for i in range(r * c)]
    return torch.tensor(places).view(-1, 3)


def draw(grids, p=8, seed=0) -> torch.Tensor:
    count = sum(r * c for r, c in grids)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, p, p), dtype=torch.uint8, generator=generator)


def padded(patches, grids) -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers takes: pixels float32[N, 3, S, S], zeros where padded, and the mask bool[N, G, G]."""
    p, height, width = patches.shape[-1], max(r for r, _ in grids), max(c for _, c in grids)
    pixels = torch.zeros(len(grids), 3, height * p, width * p)
    mask = torch.zeros(len(grids), height, width, dtype=torch.bool)
    for (n, r, c), patch in zip(patch_index(grids).tolist(), patches, strict=True):
        pixels[n, :, r * p : (r + 1) * p, c * p : (c + 1) * p] = (patch / 255 - 0.5) / 0.5
        mask[n, r, c] = True
    return pixels, mask


MIXED = [
    [(4, 4)],
    [(4, 4), (4, 4), (4, 4)],
    [(3, 2), (1, 1), (4, 4), (2, 3), (1, 4), (3, 2)],
    [(1, 1)],
]


@pytest.mark.parametrize("grids", MIXED)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_flat_tower_equals_transformers_padded_one_with_gradients(grids, checkpointed):
    theirs = tiny_tower(attn_implementation="sdpa")
    ours = tiny_tower(attn_implementation=ATTENTION).train()
    if checkpointed:
        ours.gradient_checkpointing_enable({"use_reentrant": False})
    patches = draw(grids)
    pixels, mask = padded(patches, grids)
    want = theirs(pixels, patch_attention_mask=mask).last_hidden_state[mask.flatten(1)]
    got = patch_features(ours, patches, patch_index(grids), grids)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    weigh = torch.randn(want.shape, generator=torch.Generator().manual_seed(1))
    (got * weigh).sum().backward()
    (want * weigh).sum().backward()
    for (name, mine), parameter in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_no_image_sees_another():
    tower = tiny_tower(attn_implementation=ATTENTION)
    grids = [(3, 2), (2, 3), (4, 4), (1, 2)]
    index, patches = patch_index(grids), draw(grids)
    before = patch_features(tower, patches, index, grids)
    for n in range(len(grids)):
        mine = index[:, 0] == n
        changed = torch.where(mine[:, None, None, None], 255 - patches, patches)
        after = patch_features(tower, changed, index, grids)
        assert after[~mine].equal(before[~mine])
        assert (after[mine] != before[mine]).any(-1).all()


@pytest.mark.parametrize(("side", "patch"), [(4, 8), (8, 8), (27, 14), (70, 14)])
def test_positions_are_those_of_idefics2_on_a_padded_batch(side, patch):
    """A table that says its own row, and patches that say nothing: the embedding is the position."""
    embeddings = Idefics2VisionEmbeddings(
        Idefics2VisionConfig(hidden_size=1, image_size=side * patch, patch_size=patch, num_attention_heads=1)
    )
    for parameter in embeddings.patch_embedding.parameters():
        nn.init.zeros_(parameter)
    embeddings.position_embedding.weight.data = torch.arange(float(side**2))[:, None]
    grids = [(rows, columns) for rows in range(1, side + 1) for columns in {1, rows, side - rows + 1, side}]
    for some in (grids[n : n + 16] for n in range(0, len(grids), 16)):
        mask = torch.zeros(len(some), side, side, dtype=torch.bool)
        for n, (rows, columns) in enumerate(some):
            mask[n, :rows, :columns] = True
        with torch.no_grad():
            want = embeddings(torch.zeros(len(some), 3, side * patch, side * patch), mask)[..., 0]
        got = position_ids(patch_index(some), some, side)
        assert got.equal(want[mask.flatten(1)].long())


def test_positions_keep_idefics2s_rounding():
    rows = position_ids(patch_index([(25, 1)]), [(25, 1)], 70) // 70
    assert rows.tolist() != [row * 70 // 25 for row in range(25)]


def test_tower_round_trip(tmp_path):
    tower = tiny_tower(attn_implementation=ATTENTION)
    save_vision(tower, tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()
    again = load_vision(tmp_path)
    assert all(a.equal(b) for a, b in zip(tower.parameters(), again.parameters(), strict=True))
    grids = [(2, 4), (4, 3)]
    given = draw(grids), patch_index(grids), grids
    assert patch_features(again, *given).equal(patch_features(tower, *given))


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
