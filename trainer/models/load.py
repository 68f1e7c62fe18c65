"""What a batch asks of a model, counted on the host without padding: what the formulas in flops.py take."""

import torch

from data_pipeline.batch import PAD_DOCUMENT, Batch
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.models.cross_attention import pairs_read
from trainer.models.flops import Load, causal_pairs, full_pairs
from trainer.models.language import window
from trainer.models.masks import full_blocks


def load_of(model: AutoregressiveVLM, batch: Batch) -> Load:
    """Of a batch on the host. Where blocks that see themselves whole reach further than the language model's
    window, their pairs beyond it count too."""
    lengths = _lengths(batch.document_ids, batch.document_ids)
    blocks = full_blocks(model.mask, batch.image_ids, batch.labels)
    pairs = causal_pairs(lengths, window(model.language)) + full_pairs(_lengths(blocks, batch.document_ids))
    read = 0
    if model.config.cross_attention is not None:
        read = pairs_read(batch) * model.config.image.tokens(model.config.connector)
    return Load(
        patches=tuple(rows * columns for rows, columns in batch.grids),
        tokens=sum(lengths),
        pairs=pairs,
        targets=batch.target_tokens,
        read=read,
    )


def joined(loads: list[Load]) -> Load:
    """Of all of them, one after another."""
    return Load(
        patches=tuple(n for load in loads for n in load.patches),
        tokens=sum(load.tokens for load in loads),
        pairs=sum(load.pairs for load in loads),
        targets=sum(load.targets for load in loads),
        read=sum(load.read for load in loads),
    )


def _lengths(ids: torch.Tensor, document_ids: torch.Tensor) -> list[int]:
    """ids, document_ids int64[B, T] -> how many positions of a document share each number in `ids` but 0."""
    rows = torch.arange(len(ids)).unsqueeze(1)
    documents = rows * (1 + document_ids.max()) + document_ids
    keys = documents * (1 + ids.max()) + ids
    counts = torch.bincount(keys[(ids != 0) & (document_ids != PAD_DOCUMENT)])
    return counts[counts > 0].tolist()
