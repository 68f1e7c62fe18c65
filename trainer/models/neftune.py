"""NEFTune: noise on the embeddings of text while training (Jain et al., arXiv 2310.05914, algorithm 1).

Shapes: B rows, T positions a row, D the language model's width.
"""

import torch


def noisy(embeddings: torch.Tensor, document_ids: torch.Tensor, alpha: float) -> torch.Tensor:
    """embeddings [B, T, D], document_ids int64[B, T] -> embeddings + alpha / sqrt(L * D) * Uniform(-1, 1).

    L is the length of the position's own document, visual tokens counted: the paper's sequence is one
    example, and here several share a row. Drawn from torch's generator of the device, which the loop seeds
    by step.
    """
    counts = document_ids.new_zeros(document_ids.shape[0], document_ids.shape[1] + 1)
    counts.scatter_add_(1, document_ids, torch.ones_like(document_ids))
    size = alpha / (counts.gather(1, document_ids) * embeddings.shape[-1]).sqrt()  # [B, T]
    noise = torch.empty(embeddings.shape, device=embeddings.device).uniform_(-1, 1)
    return embeddings + (noise * size[..., None]).to(embeddings.dtype)
