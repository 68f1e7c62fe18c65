"""From patch features to visual tokens of the language model's width.

Shapes: N images, P patches of all images, W the tower's width, K visual tokens an image (the same for every
image), D the language model's width. All connectors take images of any size, all in one flat sequence.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_layers import GradientCheckpointingLayer

from data_pipeline.image_spec import MLP, Connector, ImageSpec, Perceiver, PixelShuffle

Grids = Sequence[tuple[int, int]]
"""(rows, columns) of patches of each image, on the host."""


def build_connector(
    config: Connector, image: ImageSpec, vision_width: int, language_width: int
) -> "PixelShuffleConnector | PerceiverConnector":
    """The connector that `config` names; it gives `image.tokens(config)` tokens an image."""
    image.tokens(config)  # raises where the grid does not divide
    match config:
        case PixelShuffle(factor=factor):
            return PixelShuffleConnector(factor, image.largest_grid, vision_width, language_width)
        case MLP():
            return PixelShuffleConnector(1, image.largest_grid, vision_width, language_width)
        case Perceiver():
            return PerceiverConnector(config, vision_width, language_width)


class PixelShuffleConnector(nn.Module):
    """Concatenate `factor` x `factor` neighbouring patches into one token, then a 2-layer MLP.

    Every image is laid into the upper left of a square of `grid` x `grid` patches, the rest exact zeros, so
    that all have (grid / factor)^2 tokens.
    """

    def __init__(self, factor: int, grid: int, vision_width: int, language_width: int) -> None:
        super().__init__()
        self.factor, self.grid = factor, grid
        self.up = nn.Linear(vision_width * factor**2, language_width)
        self.down = nn.Linear(language_width, language_width)

    def forward(self, features: torch.Tensor, patch_index: torch.Tensor, grids: Grids) -> torch.Tensor:
        """features [P, W], patch_index int64[P, 3], N grids -> [N, (grid / factor)^2, D]."""
        image, row, column = patch_index.unbind(1)
        squares = features.new_zeros(len(grids) * self.grid**2, features.shape[-1])
        squares = squares.index_copy(0, (image * self.grid + row) * self.grid + column, features)
        folded = fold(squares.unflatten(0, (len(grids), -1)), self.grid, self.factor)
        return self.down(F.gelu(self.up(folded)))


def fold(features: torch.Tensor, grid: int, factor: int) -> torch.Tensor:
    """[N, grid * grid, W] -> [N, (grid / factor)^2, factor * factor * W], tokens and patches row by row."""
    images, _, width = features.shape
    side = grid // factor
    blocks = features.view(images, side, factor, side, factor, width)
    return blocks.transpose(2, 3).reshape(images, side * side, factor * factor * width)


class PerceiverConnector(nn.Module):
    """Project the patches to D, then let learned latents read them in `depth` cross-attention layers."""

    def __init__(self, config: Perceiver, vision_width: int, language_width: int) -> None:
        super().__init__()
        hidden = config.projection_width or 4 * language_width
        self.projection = GatedMLP(vision_width, hidden, language_width)
        # Distinct values: equal latents would give equal tokens, told apart by their gradients alone.
        self.latents = nn.Parameter(torch.randn(config.latents, language_width) * 0.02)
        self.layers = nn.ModuleList(PerceiverLayer(config, language_width) for _ in range(config.depth))
        self.norm = nn.RMSNorm(language_width, eps=config.eps)

    def forward(self, features: torch.Tensor, patch_index: torch.Tensor, grids: Grids) -> torch.Tensor:
        """features [P, W], patch_index int64[P, 3], N grids -> [N, latents, D]."""
        lengths = [rows * columns for rows, columns in grids]
        projected = self.projection(features)
        tokens = self.latents.expand(len(lengths), -1, -1)
        if len(set(lengths)) == 1:  # without padding no mask, and so the fastest kernels
            context, seen = projected.unflatten(0, (len(lengths), -1)), None
        else:
            # [N, L, D], L patches of the longest image: padded behind the largest matrices.
            context = pad_sequence(projected.split(lengths), batch_first=True)
            places = torch.arange(context.shape[1], device=context.device)
            real = places < torch.tensor(lengths, device=context.device)[:, None]
            # Latents see one another too.
            seen = F.pad(real, (0, tokens.shape[1]), value=True)[:, None, None, :]
        for layer in self.layers:
            tokens = layer(tokens, context, seen)
        return self.norm(tokens)


class PerceiverLayer(GradientCheckpointingLayer):
    """Pre-norm cross-attention of latents over [context; latents], then a gated MLP."""

    def __init__(self, config: Perceiver, width: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.latent_norm = nn.RMSNorm(width, eps=config.eps)
        self.context_norm = nn.RMSNorm(width, eps=config.eps)
        self.query = nn.Linear(width, self.heads * self.head_dim, bias=False)
        self.key = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(self.heads * self.head_dim, width, bias=False)
        self.query_norm, self.key_norm = (
            nn.RMSNorm(self.head_dim, eps=config.eps) if config.qk_norm else nn.Identity() for _ in range(2)
        )
        self.mlp_norm = nn.RMSNorm(width, eps=config.eps)
        self.mlp = GatedMLP(width, 4 * width, width)

    def forward(
        self, latents: torch.Tensor, context: torch.Tensor, seen: torch.Tensor | None
    ) -> torch.Tensor:
        """latents [N, K, D], context [N, L, D], seen bool[N, 1, 1, L + K] or None for all -> [N, K, D]."""
        normed = self.latent_norm(latents)
        source = torch.cat([self.context_norm(context), normed], dim=1)
        query = self.query_norm(self._split(self.query(normed), self.heads))
        key = self.key_norm(self._split(self.key(source), self.kv_heads))
        value = self._split(self.value(source), self.kv_heads)
        if seen is not None:  # under a mask only the slowest kernel takes grouped keys
            key, value = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (key, value))
        grouped = key.shape[1] != self.heads
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=grouped)
        latents = latents + self.out(attended.transpose(1, 2).flatten(2))
        return latents + self.mlp(self.mlp_norm(latents))

    def _split(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        return x.unflatten(-1, (heads, self.head_dim)).transpose(1, 2)


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, width_in: int, hidden: int, width_out: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width_in, hidden, bias=False)
        self.up = nn.Linear(width_in, hidden, bias=False)
        self.down = nn.Linear(hidden, width_out, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))
