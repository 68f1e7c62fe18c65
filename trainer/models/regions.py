"""torch.compile by region: what repeats is compiled once, and what differs with every picture stays as it is.

Regions are the language model's layers, the cross-attention blocks between them, and the MLPs of the tower's:
its attention has other shapes for every set of pictures and would be compiled again and again.
"""

import torch
from torch import nn

from trainer.models.autoregressive import AutoregressiveVLM
from trainer.models.crossed import CrossAttentionVLM
from trainer.models.language import body_of


def compile_regions(model: AutoregressiveVLM, backend: str = "inductor") -> list[nn.Module]:
    """Compile the regions' forward passes in place, at their first call; names of weights stay.

    What is called around a forward pass, as ZeRO-3 gathers weights, stays outside: hand the regions returned
    to initialize(), for inside of them nothing may be gathered apart.
    """
    regions = [*body_of(model.language).layers, *(layer.mlp for layer in model.vision.encoder.layers)]
    if isinstance(model, CrossAttentionVLM):
        regions += model.cross_attention.blocks
    for region in regions:
        region.forward = torch.compile(region.forward, backend=backend)
    return regions
