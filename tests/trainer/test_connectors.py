"""The MLP connector, and the perceiver's norms on queries and keys, each against a loop over one image."""

import pytest
import torch
from torch.nn import functional as F

from data_pipeline.image_spec import MLP, ImageSpec, Perceiver
from trainer.models.connector import build_connector

IMAGE = ImageSpec(longest_edge=32, patch=8)
GRIDS = [(3, 2), (4, 4), (1, 1)]


def index_of(grids):
    return torch.tensor(
        [(n, r, c) for n, (rows, cols) in enumerate(grids) for r in range(rows) for c in range(cols)]
    )


def test_the_mlp_gives_a_token_for_every_place_of_the_largest_tile():
    torch.manual_seed(0)
    connector = build_connector(MLP(), IMAGE, 12, 16)
    index = index_of(GRIDS)
    features = torch.randn(len(index), 12)
    out = connector(features, index, GRIDS)
    assert out.shape == (3, IMAGE.tokens(MLP()), 16) == (3, 16, 16)
    places = {(n, r * 4 + c): f for (n, r, c), f in zip(index.tolist(), features, strict=True)}
    for n in range(3):
        for k in range(16):
            patch = places.get((n, k), torch.zeros(12))
            torch.testing.assert_close(out[n, k], connector.down(F.gelu(connector.up(patch))))


def rms(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


@pytest.mark.parametrize("qk_norm", [True, False])
def test_the_perceiver_attends_as_a_loop_over_images_and_heads_does(qk_norm):
    torch.manual_seed(0)
    config = Perceiver(
        latents=3, depth=2, heads=4, kv_heads=2, head_dim=6, qk_norm=qk_norm, projection_width=20, eps=1e-3
    )
    connector = build_connector(config, IMAGE, 12, 16)
    for name, parameter in connector.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    assert connector.projection.gate.weight.shape == (20, 12)
    index = index_of(GRIDS)
    features = torch.randn(len(index), 12)
    out = connector(features, index, GRIDS)
    for n in range(3):
        context = connector.projection(features[index[:, 0] == n])
        tokens = connector.latents
        for layer in connector.layers:
            latents = rms(tokens, layer.latent_norm.weight, 1e-3)
            source = torch.cat([rms(context, layer.context_norm.weight, 1e-3), latents])
            q, k, v = layer.query(latents), layer.key(source), layer.value(source)
            heads = []
            for h in range(4):
                mine, shared = slice(6 * h, 6 * h + 6), slice(6 * (h // 2), 6 * (h // 2) + 6)
                one, other = q[:, mine], k[:, shared]
                if qk_norm:
                    one = rms(one, layer.query_norm.weight, 1e-3)
                    other = rms(other, layer.key_norm.weight, 1e-3)
                heads.append((one @ other.T / 6**0.5).softmax(-1) @ v[:, shared])
            tokens = tokens + layer.out(torch.cat(heads, dim=-1))
            tokens = tokens + layer.mlp(rms(tokens, layer.mlp_norm.weight, 1e-3))
        torch.testing.assert_close(out[n], rms(tokens, connector.norm.weight, 1e-3), rtol=1e-4, atol=1e-5)
