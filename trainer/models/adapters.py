"""LoRA and DoRA beside the linear layers of a module: peft's layers, attached, handed on, merged.

A linear layer `x` with an adapter keeps its own weights, frozen, as `x.base_layer.*`. Beside them stand
`x.lora_A.default.weight` [rank, in], `x.lora_B.default.weight` [out, rank], and for DoRA
`x.lora_magnitude_vector.default.weight` [out].
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import PreTrainedModel

from data_pipeline.errors import ConfigError, nearest
from trainer.models.moe.layer import upcycled
from trainer.models.stored import Stored, stored
from trainer.models.tuning import Adapter, Tuning
from trainer.models.weights import load_state

_BASE, _A, _B = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"
_MAGNITUDE = ".lora_magnitude_vector.default.weight"
PARTS = {_A: ".lora_A.weight", _B: ".lora_B.weight", _MAGNITUDE: ".lora_magnitude_vector"}
"""How an adapter's tensors are named in a model -> in peft's files."""


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name belongs to an adapter."""
    return name.endswith(tuple(PARTS))


def attach(model: nn.Module, train: Mapping[str, Tuning]) -> None:
    """Give the modules of `train` their adapters; the model's outputs stay as they are.

    DoRA reads the lengths of the weights' rows here, so the weights must be there already. Raises ConfigError
    where a module has no linear layer of a name in `targets`.
    """
    for name, tuning in train.items():
        if tuning.adapter is not None:
            part = getattr(model, name)
            config = LoraConfig(
                r=tuning.adapter.rank,
                lora_alpha=tuning.adapter.alpha,  # type: ignore[arg-type]  # peft says int, and divides it
                lora_dropout=tuning.adapter.dropout,
                use_dora=tuning.kind == "dora",
                target_modules=_targets(name, part, tuning.adapter),
            )
            inject_adapter_in_model(config, part)


def warm_start(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    before: Mapping[str, Tuning],
    now: Mapping[str, Tuning],
    origin: str,
) -> None:
    """Load what a stage trained by `before` has left into a plain model, which is trained by `now` next.

    `origin` names the source of the weights in errors.
    """

    def load(merged: Mapping[str, Stored]) -> None:
        load_state(model, {name: tensor.read() for name, tensor in merged.items()}, origin)

    hand_on(model, stored(weights), before, now, load)


def hand_on(
    model: nn.Module,
    weights: Mapping[str, Stored],
    before: Mapping[str, Tuning],
    now: Mapping[str, Tuning],
    load: Callable[[Mapping[str, Stored]], None],
) -> None:
    """`load` what a stage trained by `before` has left into a model that is trained by `now` next.

    An adapter that `now` has too, with the same settings, goes on; any other is merged into the weights. From
    weights without experts, those of `model` start as copies of their layer's FFN.
    """
    kept = {name: tuning for name, tuning in now.items() if tuning.continues(before.get(name))}
    attach(model, kept)
    load(upcycled(model, merging(weights, {m: t for m, t in before.items() if m not in kept})))
    attach(model, {m: t for m, t in now.items() if m not in kept})


def merge(weights: Mapping[str, torch.Tensor], train: Mapping[str, Tuning]) -> dict[str, torch.Tensor]:
    """Whole tensors of a model with the adapters of `train` -> those of a model without that does the same.

    LoRA: W + s B A. DoRA: each row of that, scaled to the length that was trained. In the tensors' own
    precision; a checkpoint's are float32.
    """
    return {name: tensor.read() for name, tensor in merging(stored(weights), train).items()}


def merging(weights: Mapping[str, Stored], train: Mapping[str, Tuning]) -> dict[str, Stored]:
    """As `merge`, each tensor merged when it is read."""
    merged = {}
    for name, tensor in weights.items():
        tuning = train.get(name.partition(".")[0])
        adapter = tuning.adapter if tuning else None
        if adapter is None:
            merged[name] = tensor
        elif name.endswith(f"{_BASE}weight"):
            layer = name.removesuffix(f"{_BASE}weight")
            merged[f"{layer}.weight"] = Stored(
                tensor.shape, partial(_merged_weight, layer, tensor, weights, adapter)
            )
        elif not is_adapter(name):
            merged[name.replace(_BASE, ".")] = tensor
    return merged


def split(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What stands below the adapters, under a plain model's names; and the adapters' own tensors."""
    below = {name.replace(_BASE, "."): t for name, t in weights.items() if not is_adapter(name)}
    return below, {name: t for name, t in weights.items() if is_adapter(name)}


def _merged_weight(
    layer: str, weight: Stored, weights: Mapping[str, Stored], adapter: Adapter
) -> torch.Tensor:
    product = weights[layer + _B].read() @ weights[layer + _A].read()
    moved = weight.read() + adapter.alpha / adapter.rank * product
    length = weights.get(layer + _MAGNITUDE)
    if length is None:
        return moved
    return moved * (length.read() / torch.linalg.vector_norm(moved, dim=1))[:, None]


def _targets(name: str, part: nn.Module, adapter: Adapter) -> list[str]:
    """Last names of the linear layers to adapt."""
    language = part if isinstance(part, PreTrainedModel) else None
    head = None if language is None else language.get_output_embeddings()
    linear = {n.rpartition(".")[2]: m for n, m in part.named_modules() if isinstance(m, nn.Linear)}
    unknown = [t for t in adapter.targets if t not in linear]
    if unknown or not linear:
        hint = nearest(unknown[0], linear) if unknown else ""
        raise ConfigError(
            f"train.{name}: no linear layer is named {', '.join(unknown) or 'at all'}{hint}\n"
            f"  There are: {', '.join(sorted(linear)) or 'none'}"
        )
    if language is not None and head is not None and any(linear[t] is head for t in adapter.targets):
        table = language.get_input_embeddings()
        if head.weight is table.weight:
            raise ConfigError(
                f"train.{name}: the head's weights are those of the embeddings, which an adapter would not "
                "follow; leave the head out of targets"
            )
    return sorted(adapter.targets or [n for n, m in linear.items() if m is not head])
