"""The loss of a micro-batch: a sum, never a mean, so that its weight is set where all targets are known.

Shapes: B rows, T positions a row, D width, V entries of the vocabulary.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from data_pipeline.batch import IGNORE


def token_loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [..., V], labels int64[...] -> (summed cross-entropy in fp32, number of targets).

    Without a target the sum is 0 and still has a graph, so that every rank runs the same backward pass.
    """
    total = F.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    return total, (labels != IGNORE).sum()


def target_loss(
    hidden: torch.Tensor, labels: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden [B, T, D], labels int64[B, T] -> as token_loss, with logits at target positions only.

    Prompts, visual tokens and padding would fill memory with fp32 logits that nothing reads. `head` is
    called exactly once, on one position more than there are targets (its label is IGNORE): where ranks
    share the head's weights, a rank without a target has to call it too.
    """
    flat = labels.flatten()
    at = F.pad((flat != IGNORE).nonzero().squeeze(1), (0, 1))
    targets = F.pad(flat[at[:-1]], (0, 1), value=IGNORE)
    return token_loss(head(hidden.flatten(0, 1)[at]), targets)
