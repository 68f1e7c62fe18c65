"""The loss of a micro-batch: a sum, never a mean, so that its weight is set where all targets are known.

Shapes: B rows, T positions a row, D width, V entries of the vocabulary.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from data_pipeline.batch import IGNORE

CHUNK = 1024
"""Positions whose logits exist at one time, at most: 128 MiB in fp32 at a vocabulary of 32k."""


def token_loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [..., V], labels int64[...] -> (summed cross-entropy in fp32, number of targets).

    Without a target the sum is 0 and still has a graph, so that every rank runs the same backward pass.
    """
    total = F.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    return total, (labels != IGNORE).sum()


def target_loss(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    chunk: int = CHUNK,
) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden [B, T, D], labels int64[B, T] -> (summed cross-entropy in fp32, float32[targets]: that of each
    target, in reading order and without a graph), with logits of at most `chunk` targets at once.

    Prompts, visual tokens and padding would fill memory with fp32 logits that nothing reads, so targets are
    gathered first, then cut into equal chunks; the backward pass makes the logits of each again. `head` is
    called once for every `chunk` positions of B x T, however many of them are targets: where ranks share the
    head's weights, they have to call it equally often, a rank without a target too.
    """
    flat = labels.flatten()
    targets = (flat != IGNORE).nonzero().squeeze(1)
    chunks = -(-len(flat) // chunk)
    size = max(1, -(-len(targets) // chunks))
    filling = (0, chunks * size - len(targets))
    read = hidden.flatten(0, 1)[F.pad(targets, filling)].unflatten(0, (chunks, size)).unbind()
    wanted = F.pad(flat[targets], filling, value=IGNORE).unflatten(0, (chunks, size)).unbind()

    def piece(read: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(head(read).float(), wanted, ignore_index=IGNORE, reduction="none")

    # The backward pass begins with the last chunk: what it needs has just been made.
    losses = [
        checkpoint(piece, *pair, use_reentrant=False) for pair in zip(read[:-1], wanted[:-1], strict=True)
    ]
    losses.append(piece(read[-1], wanted[-1]))
    every = torch.cat(losses)
    return every.sum(), every.detach()[: len(targets)]
