"""What the routers of one micro-batch decided: the losses that keep them even, and figures for the log.

Shapes: N tokens, E experts, k experts of a token, L layers with experts.
"""

import torch

from data_pipeline.batch import PAD_DOCUMENT, Batch
from trainer.models.moe.config import MixtureOfExperts


def balance_loss(scores: torch.Tensor, load: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Switch's load-balance loss (arXiv 2101.03961, equations 4 to 6) of the real tokens, times their number.

    scores [N, E], load float[E] (how many real tokens each expert got), real bool[N] -> []. Over k experts a
    token, a share is one of the N k assignments (as in arXiv 2202.08906): even routing gives 1 a token.
    """
    probabilities = scores.softmax(dim=-1) * real[:, None]
    share = load / load.sum().clamp(min=1)
    return len(load) * (share * probabilities.sum(dim=0)).sum()


def z_loss(scores: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """ST-MoE's router z-loss (arXiv 2202.08906, equation 5) of the real tokens, times their number.

    scores [N, E], real bool[N] -> [].
    """
    return (scores.logsumexp(dim=-1).square() * real).sum()


class Routing:
    """Shared by the layers with experts of one model; without any, its loss is 0 and its figures are none.

    A micro-batch: `begin`, the forward pass, `loss`, the backward pass. `sums` after all of a step.

    Padding is routed like any token, for the sake of shapes that do not depend on the data, but neither
    losses nor figures count it. Nothing here waits for the device but `sums`, once a step.
    """

    def __init__(self, config: MixtureOfExperts, layers: int) -> None:
        self.config = config
        self._layers = layers
        self._real: torch.Tensor | None = None
        self._losses: dict[int, torch.Tensor] = {}
        self._figures: dict[int, torch.Tensor] = {}
        self._sums: torch.Tensor | None = None

    def begin(self, batch: Batch) -> None:
        """The tokens of the next forward pass in training mode."""
        self._real = (batch.document_ids != PAD_DOCUMENT).flatten()
        self._losses, self._figures = {}, {}

    def note(self, layer: int, scores: torch.Tensor, chosen: torch.Tensor) -> None:
        """A layer's router, in the forward pass: scores float32[N, E], chosen int64[N, k].

        Activation checkpointing calls it again in the backward pass. It must do the same work then, but what
        the first call noted stays.
        """
        if self._real is None:
            return
        real = self._real
        experts = torch.arange(self.config.experts, device=chosen.device)
        load = ((chosen[..., None] == experts).sum(dim=1) * real[:, None]).sum(dim=0).float()
        balance, z = balance_loss(scores, load, real), z_loss(scores, real)
        loss = self.config.balance * balance + self.config.z * z
        with torch.no_grad():
            log_p = scores.log_softmax(dim=-1)
            entropy = -((log_p.exp() * log_p).sum(dim=-1) * real).sum()
            figures = torch.cat([load, torch.stack([entropy, balance, z])])
        self._losses.setdefault(layer, loss)
        self._figures.setdefault(layer, figures)

    def loss(self) -> torch.Tensor | float:
        """The auxiliary losses of this forward pass, weighted, summed over layers and real tokens: float32[].

        Summed over ranks and micro-batches, and divided by the real tokens of the global batch, it is what a
        step descends beside its cross-entropy. Of z that is the mean over all tokens. Balance is no sum over
        tokens: it is that of each micro-batch by its own shares, weighted with its tokens.
        """
        if self._figures:
            figures = torch.stack([self._figures[layer] for layer in sorted(self._figures)])
            self._sums = figures if self._sums is None else self._sums + figures
        return sum((self._losses[layer] for layer in sorted(self._losses)), start=0.0)

    def sums(self) -> list[float]:
        """What this rank noted since the last call, to be summed over ranks; of one length on all of them."""
        width = self.config.experts + 3
        sums = [0.0] * (self._layers * width) if self._sums is None else self._sums.flatten().tolist()
        self._real, self._sums = None, None
        self._losses, self._figures = {}, {}
        return sums

    def figures(self, sums: list[float], tokens: float) -> dict[str, float]:
        """For the log, from the sums of all ranks and the number of real tokens of the global batch."""
        if not sums:
            return {}
        table = torch.tensor(sums, dtype=torch.float64).view(self._layers, -1)
        tokens = max(1.0, tokens)
        share = table[:, : self.config.experts] / (tokens * self.config.top_k)
        entropy, balance, z = (table[:, self.config.experts :] / tokens).mean(dim=0).tolist()
        return {
            "expert_share_max": float(share.max()),
            "expert_share_min": float(share.min()),
            "router_entropy": entropy,
            "router_balance": balance,
            "router_z": z,
        }
