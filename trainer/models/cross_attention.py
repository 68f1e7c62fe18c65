"""Gated blocks before every n-th layer of a language model, by which text reads the last picture before it.

After Flamingo (Alayrac et al., arXiv 2204.14198, section 2.2 and figure 4). Heads, widths and the gated MLP
are the language model's own, as in Idefics.
Shapes: B rows, Q positions, D the language model's width, N images of K visual tokens, S = slots * K where a
row has as many slots as the row with the most images; H heads, G key and value heads, d a head's width.
"""

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from data_pipeline.batch import PAD_DOCUMENT, Batch
from data_pipeline.errors import ConfigError, DataError
from trainer.models.config import CrossAttention
from trainer.models.connector import GatedMLP

_SIDE_BY_SIDE = 3
"""Positions from one placeholder to the next where only the tokens around pictures stand between them."""

_GATES = ("attention_gate", "mlp_gate")


def is_gate(name: str) -> bool:
    """Whether a parameter of that name is the gate of a block."""
    return name.endswith(_GATES)


@dataclass(frozen=True)
class Media:
    """What a batch's positions read. `kept`: keys and values of each block, [B, G, S, d], made once.

    A position that reads nothing has a row of True in `seen`, for a softmax over nothing is NaN, and False in
    `reads`, which leaves it as it is.
    """

    tokens: torch.Tensor  # [B, S, D]
    seen: torch.Tensor  # bool[B, 1, Q, S]
    reads: torch.Tensor  # bool[B, Q, 1]
    kept: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()

    def last(self) -> "Media":
        """For positions that continue the rows: each reads what its row's last position does."""
        return replace(self, seen=self.seen[:, :, -1:], reads=self.reads[:, -1:])


def lay_out(features: torch.Tensor, batch: Batch) -> Media:
    """features [N, K, D], of one blank image where the batch has none -> what each position reads: in its own
    document the last picture at or before it.

    Pictures that stand side by side, with no text between, are read together: the tiles of a split picture
    stand so. Raises DataError unless each image has one placeholder, in order.
    """
    image_ids, document_ids = batch.image_ids, batch.document_ids
    rows, places = image_ids.nonzero(as_tuple=True)
    numbers = image_ids[rows, places]
    order = torch.arange(1, len(numbers) + 1, device=image_ids.device)
    if not numbers.equal(order) or len(numbers) != len(batch.grids):
        raise DataError(
            f"the batch has {len(batch.grids)} images and placeholders of {numbers.tolist()[:20]}; "
            "with cross-attention each has one, in order. Do the batch and the model use the same recipe?"
        )
    counts = rows.bincount(minlength=len(image_ids))
    slots = max(1, int(counts.max()))
    slot = order - 1 - (counts.cumsum(0) - counts)[rows]
    tokens = features.new_zeros(len(image_ids), slots, *features.shape[1:])
    # A blank is read by nobody, but every module has run.
    tokens = tokens.index_put((rows, slot), features) if len(numbers) else tokens + features
    return Media(tokens.flatten(1, 2), *_who_reads(image_ids > 0, document_ids, slots, features.shape[1]))


def pairs_read(batch: Batch) -> int:
    """Pairs of a position and a picture that it reads."""
    placeholders = batch.image_ids > 0
    slots = max(1, int(placeholders.sum(1).max()))
    seen, reads = _who_reads(placeholders, batch.document_ids, slots, 1)
    return int((seen[:, 0] & reads).sum())


def _who_reads(
    placeholders: torch.Tensor, document_ids: torch.Tensor, slots: int, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """placeholders bool[B, T] -> seen bool[B, 1, T, slots * count], reads bool[B, T, 1]."""
    length = placeholders.shape[1]
    at = torch.arange(length, device=placeholders.device).expand_as(placeholders)
    # Of each position: its last placeholder, and the one before that; -1 where there is none.
    last = at.where(placeholders, -1).cummax(1).values
    before = F.pad(last, (1, 0), value=-1)[:, :-1]  # of a placeholder, the one before it
    own = document_ids.gather(1, before.clamp(min=0)) == document_ids
    opens = placeholders & ~((before >= 0) & (at - before <= _SIDE_BY_SIDE) & own)
    slot = placeholders.cumsum(1) - 1
    first = slot.where(opens, -1).cummax(1).values
    reads = (last >= 0) & (document_ids.gather(1, last.clamp(min=0)) == document_ids)
    reads = reads & (document_ids != PAD_DOCUMENT)
    index = torch.arange(slots, device=placeholders.device)
    seen = (index >= first[..., None]) & (index <= slot[..., None]) | ~reads[..., None]
    return seen.repeat_interleave(count, dim=2)[:, None], reads[..., None]


class CrossAttentionBlocks(nn.Module):
    """The blocks of a language model of `layers` layers: before the layers 0, `every`, 2 * `every`, ..."""

    def __init__(self, config: CrossAttention, language: PretrainedConfig) -> None:
        super().__init__()
        layers = language.num_hidden_layers
        if config.every > layers:
            raise ConfigError(
                f"model.cross_attention.every is {config.every}, but the language model has {layers} layers: "
                f"allowed are 1 to {layers}"
            )
        self.every = config.every
        count = -(-layers // config.every)
        self.blocks = nn.ModuleList(CrossAttentionBlock(language, config.qk_norm) for _ in range(count))

    def before(self, layer: int, hidden: torch.Tensor, media: Media) -> torch.Tensor:
        """hidden [B, Q, D] on its way to that layer -> [B, Q, D]."""
        number, between = divmod(layer, self.every)
        if between:
            return hidden
        kept = media.kept[number] if media.kept else None
        return self.blocks[number](hidden, media.tokens, media.seen, media.reads, kept)

    def keep(self, media: Media) -> Media:
        """With the keys and values of all blocks, for many passes over the same pictures."""
        blocks = cast(list[CrossAttentionBlock], self.blocks)
        return replace(media, kept=tuple(block.read(media.tokens) for block in blocks))


class CrossAttentionBlock(GradientCheckpointingLayer):
    """x + tanh(gate) attention(norm(x), pictures), then x + tanh(gate) MLP(norm(x)).

    Both gates begin at 0, so that a fresh block changes nothing; they are trained from there.
    """

    def __init__(self, language: PretrainedConfig, qk_norm: bool) -> None:
        super().__init__()
        width, eps = language.hidden_size, getattr(language, "rms_norm_eps", 1e-6)
        self.heads = language.num_attention_heads
        self.kv_heads = getattr(language, "num_key_value_heads", None) or self.heads
        self.head_dim = getattr(language, "head_dim", None) or width // self.heads
        self.norm = nn.RMSNorm(width, eps=eps)
        self.query = nn.Linear(width, self.heads * self.head_dim, bias=False)
        self.key = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(self.heads * self.head_dim, width, bias=False)
        self.query_norm, self.key_norm = (
            nn.RMSNorm(self.head_dim, eps=eps) if qk_norm else nn.Identity() for _ in range(2)
        )
        self.mlp_norm = nn.RMSNorm(width, eps=eps)
        self.mlp = GatedMLP(width, language.intermediate_size, width)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.mlp_gate = nn.Parameter(torch.zeros(1))

    def read(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, S, D] -> keys and values [B, G, S, d]."""
        return self.key_norm(self._split(self.key(tokens))), self._split(self.value(tokens))

    def forward(
        self,
        x: torch.Tensor,
        tokens: torch.Tensor,
        seen: torch.Tensor,
        reads: torch.Tensor,
        kept: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """x [B, Q, D]; tokens, seen, reads of Media; `kept`: what `read` gave of tokens -> [B, Q, D]."""
        keys, values = kept or self.read(tokens)
        query = self.query_norm(self._split(self.query(self.norm(x))))
        groups = self.heads // self.kv_heads
        attended = F.scaled_dot_product_attention(
            query, keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1), attn_mask=seen
        )
        # Not times zero: what is not read must not even round.
        gated = self.attention_gate.tanh() * self.out(attended.transpose(1, 2).flatten(2))
        x = x + torch.where(reads, gated, 0)
        gated = self.mlp_gate.tanh() * self.mlp(self.mlp_norm(x))
        return x + torch.where(reads, gated, 0)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
