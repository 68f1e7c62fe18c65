"""A tiny cross-attention model and packed batches for it; a second opinion, position by position."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from data_pipeline.batch import IGNORE, Batch
from data_pipeline.image_spec import ImageSpec, Perceiver
from data_pipeline.stream.collate import flat
from data_pipeline.stream.decode import Picture
from toy_backbones import MISTRAL, toy_tower
from trainer.models.build import build_model
from trainer.models.config import CrossAttention, Model
from trainer.models.cross_attention import CrossAttentionBlock
from trainer.models.crossed import CrossAttentionVLM

SPEC = ImageSpec(longest_edge=32, patch=8)
LATENTS, VOCABULARY, START, END, IMAGE = 3, 40, 40, 41, 42


def make_model(
    kind: str = "mistral", every: int = 2, mask: str = "causal", open_gates: bool = True, **language: object
) -> CrossAttentionVLM:
    torch.manual_seed(0)
    page = MISTRAL | {
        "vocab_size": VOCABULARY,
        "num_hidden_layers": 3,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = Model(
        architecture="cross_attention",
        image=SPEC,
        connector=Perceiver(latents=LATENTS, depth=1, heads=2, kv_heads=1, head_dim=8),
        cross_attention=CrossAttention(every=every),
    )
    lm = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**(page | language)))
    model = build_model(config, toy_tower(), lm.train(), mask)
    assert isinstance(model, CrossAttentionVLM)
    if open_gates:
        gates_to(model, 0.7)
    return model


def gates_to(model: CrossAttentionVLM, value: float) -> None:
    with torch.no_grad():
        for n, block in enumerate(model.cross_attention.blocks):
            block.attention_gate.fill_(value + 0.1 * n)
            block.mlp_gate.fill_(0.2 - value)


def picture(seed: int, rows: int = 2, columns: int = 3) -> Picture:
    patches = np.random.default_rng(seed).integers(0, 256, (rows * columns, 3, 8, 8), dtype=np.uint8)
    return Picture.of(patches, (rows, columns))


def tokens(parts: Sequence[int | Picture]) -> tuple[list[int], list[int]]:
    """ids, and 1 where a picture's placeholder stands. A number is a token, a picture three."""
    ids = [i for p in parts for i in ([p] if isinstance(p, int) else [START, IMAGE, END])]
    return ids, [int(i == IMAGE) for i in ids]


def pack(*rows: Sequence[Sequence[int | Picture]], length: int | None = None) -> Batch:
    """Rows of documents, each a sequence of tokens and pictures."""
    sizes = [sum(len(tokens(d)[0]) for d in row) for row in rows]
    shape = (len(rows), length or max(sizes))
    made = {
        name: torch.full(shape, filler)
        for name, filler in (
            *(("input_ids", 0), ("labels", IGNORE), ("positions", 0)),
            *(("document_ids", 0), ("image_ids", 0)),
        )
    }
    pictures: list[Picture] = []
    for b, row in enumerate(rows):
        start = 0
        for number, document in enumerate(row, start=1):
            ids, flags = tokens(document)
            at = slice(start, start + len(ids))
            made["input_ids"][b, at] = torch.tensor(ids)
            made["labels"][b, at] = torch.tensor(
                [i if i < VOCABULARY else IGNORE for i in ids[1:]] + [IGNORE]
            )
            made["positions"][b, at] = torch.arange(len(ids))
            made["document_ids"][b, at] = number
            made["image_ids"][b, at] = torch.tensor(flags) * (len(pictures) + torch.tensor(flags).cumsum(0))
            pictures += [p for p in document if isinstance(p, Picture)]
            start = at.stop
    patches, patch_index = flat(pictures, SPEC)
    return Batch(**made, patches=patches, patch_index=patch_index, grids=tuple(p.grid for p in pictures))


def read_by(batch: Batch, b: int, t: int) -> list[int]:
    """The numbers (from 0) of the images that position t of row b reads, found by walking back from it."""
    document = int(batch.document_ids[b, t])
    found: list[int] = []
    last = None
    for p in range(t, -1, -1):
        if int(batch.document_ids[b, p]) != document or document == 0:
            break
        if int(batch.image_ids[b, p]) > 0:
            between = range(p + 1, last) if last is not None else ()
            if any(int(batch.input_ids[b, q]) not in (START, END) for q in between):
                break
            found.append(int(batch.image_ids[b, p]) - 1)
            last = p
    return sorted(found)


def slowly(block: CrossAttentionBlock, x: torch.Tensor, features: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The block by loops over positions and heads: [B, T, D]. `features` [N, K, D]."""
    d, groups = block.head_dim, block.heads // block.kv_heads

    def norm(v: torch.Tensor, module: torch.nn.Module) -> torch.Tensor:
        if isinstance(module, torch.nn.Identity):
            return v
        scale = (v.float().pow(2).mean(-1, keepdim=True) + module.eps).rsqrt()
        return (v.float() * scale).to(v.dtype) * module.weight

    rows = []
    for b in range(x.shape[0]):
        row = []
        for t in range(x.shape[1]):
            v = x[b, t]
            numbers = read_by(batch, b, t)
            if numbers:
                source = torch.cat([features[n] for n in numbers])
                query, key, value = (
                    w.weight @ s
                    for w, s in (
                        (block.query, norm(v, block.norm)),
                        (block.key, source.T),
                        (block.value, source.T),
                    )
                )
                heads = []
                for h in range(block.heads):
                    g = h // groups
                    q = norm(query[h * d : (h + 1) * d], block.query_norm)
                    k = norm(key[g * d : (g + 1) * d].T, block.key_norm)
                    weights = F.softmax((k @ q).float() / d**0.5, dim=0).to(v.dtype)
                    heads.append(value[g * d : (g + 1) * d] @ weights)
                v = v + block.attention_gate.tanh() * (block.out.weight @ torch.cat(heads))
                n = norm(v, block.mlp_norm)
                inner = F.silu(block.mlp.gate.weight @ n) * (block.mlp.up.weight @ n)
                v = v + block.mlp_gate.tanh() * (block.mlp.down.weight @ inner)
            row.append(v)
        rows.append(torch.stack(row))
    return torch.stack(rows)
