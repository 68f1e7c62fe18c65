"""A router and its experts in place of a dense FFN, made from that FFN: sparse upcycling."""

from collections.abc import Mapping
from functools import partial
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from data_pipeline.errors import ConfigError
from trainer.models.language import body_of
from trainer.models.moe.config import MixtureOfExperts
from trainer.models.moe.experts import ALIGNED, Experts, GatedFFN
from trainer.models.moe.routing import Routing
from trainer.models.stored import Stored, stored

_LINEAR = ("gate_proj", "up_proj", "down_proj")


class Router(nn.Module):
    """[N, D] -> the score of each expert, float32[N, E].

    In float32 whatever the weights are in (arXiv 2101.03961, section 2.4). No nn.Linear: adapters would take
    it for one of theirs.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.float(), self.weight.float())


class MoELayer(nn.Module):
    """[..., D] -> [..., D]. The gates of a token's experts are the softmax of their scores: they sum to 1."""

    def __init__(
        self, dense: GatedFFN, router: torch.Tensor, config: MixtureOfExperts, layer: int, routing: Routing
    ) -> None:
        super().__init__()
        self.router = Router(router.to(dense.gate_proj.weight.dtype))
        self.experts = Experts(dense, config.experts, config.backend)
        self.top_k, self.layer, self.routing = config.top_k, layer, routing

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        x = hidden.flatten(0, -2)
        scores = self.router(x)
        best, chosen = scores.topk(self.top_k, dim=-1)
        if self.training:
            trained = self.router.weight.requires_grad
            self.routing.note(self.layer, scores if trained else scores.detach(), chosen)
        return self.experts(x, best.softmax(dim=-1).to(x.dtype), chosen).view_as(hidden)


def upcycle(language: PreTrainedModel, config: MixtureOfExperts) -> None:
    """Give every n-th layer its experts, in place. Each starts as the dense FFN: outputs stay as they are.

    The routers are drawn as wide as the language model's own matrices, by a generator of their own: all else
    is drawn as without experts. Raises ConfigError where its FFN is not gated as that of Mistral, Llama and
    Qwen, or where `config` does not fit its sizes.
    """
    layers = body_of(language).layers
    places = range(config.every - 1, len(layers), config.every)
    if not places:
        raise ConfigError(
            f"model.moe.every is {config.every}, but the language model has {len(layers)} layers: none of "
            "them would have experts"
        )
    routing = Routing(config, len(places))
    std = getattr(language.config, "initializer_range", 0.02)
    draw = torch.Generator().manual_seed(torch.initial_seed() + 1)
    for number, place in enumerate(places):
        dense = layers[place].get_submodule("mlp")
        _check(dense, place, config)
        # Where torch makes new tensors, not where the FFN is: a model that is filled later draws it here.
        router = torch.empty(config.experts, language.config.hidden_size)
        nn.init.normal_(router, std=std, generator=draw)
        experts = MoELayer(cast(GatedFFN, dense), router, config, number, routing)
        layers[place].mlp = experts.train(dense.training)


def upcycled(model: nn.Module, weights: Mapping[str, Stored]) -> dict[str, Stored]:
    """The weights of a dense model, by name -> those of `model` after upcycle(); its routers are as drawn.

    Weights that have experts already stay as they are.
    """
    found = dict(weights)
    for place, layer in model.named_modules():
        if isinstance(layer, MoELayer) and f"{place}.gate_proj.weight" in weights:
            for name in _LINEAR:
                dense, count = found.pop(f"{place}.{name}.weight"), len(getattr(layer.experts, name))
                copies = Stored((count, *dense.shape), partial(_copies, dense, count))
                found[f"{place}.experts.{name}"] = copies
            found |= stored({f"{place}.router.weight": layer.router.weight.detach()})
    return found


def _copies(dense: Stored, count: int) -> torch.Tensor:
    return dense.read().repeat(count, 1, 1)


def routing_of(model: nn.Module) -> Routing:
    """The routing that the layers of `model` share; without such layers, one that is empty."""
    found = (m.routing for m in model.modules() if isinstance(m, MoELayer))
    return next(found, Routing(MixtureOfExperts(), 0))


def active_parameters(model: nn.Module) -> int:
    """Parameters that one token meets: all but those of the experts that it does not go to."""
    idle = sum(
        p.numel() * (len(p) - layer.top_k) // len(p)
        for layer in model.modules()
        if isinstance(layer, MoELayer)
        for p in layer.experts.parameters()
    )
    return sum(p.numel() for p in model.parameters()) - idle


def _check(dense: nn.Module, place: int, config: MixtureOfExperts) -> None:
    linear = {n: m for n, m in dense.named_children() if isinstance(m, nn.Linear)}
    names = {n for n, _ in dense.named_parameters()}
    if (
        set(linear) != set(_LINEAR)
        or names != {f"{n}.weight" for n in _LINEAR}
        or not hasattr(dense, "act_fn")
    ):
        raise ConfigError(
            f"model.moe makes experts of an FFN with {', '.join(_LINEAR)}, without biases; layer {place} of "
            f"the language model has a {type(dense).__name__} of {', '.join(sorted(names))}.\n"
            "  Take a language model shaped like Mistral, Llama or Qwen, or leave model.moe out."
        )
    inner, width = linear["gate_proj"].weight.shape
    if config.backend != "loop" and (inner % ALIGNED or width % ALIGNED):
        raise ConfigError(
            f"model.moe.backend is {config.backend}, which takes widths that are multiples of {ALIGNED}; the "
            f"language model's are {width} and {inner}.\n  Set model.moe.backend=loop."
        )
