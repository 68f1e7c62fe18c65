"""What a stage trains. Frozen means `requires_grad=False`, never a learning rate of zero.

A frozen parameter has no gradient, no optimizer state and no place in the reduction; the groups reach the
optimizer as plain data.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from data_pipeline.errors import ConfigError
from trainer.models.adapters import is_adapter
from trainer.models.config import MODULES
from trainer.models.cross_attention import is_gate
from trainer.models.tuning import Tuning, check_modules


def freeze(model: nn.Module, train: Mapping[str, Tuning | float]) -> None:
    """Train the modules that `train` names, or their adapters (attach() them first); freeze all else.

    Gates are trained beside an adapter: as long as they are 0, nothing behind them learns.
    Raises ConfigError where nothing is left to train.
    """
    tunings = _checked(model, train)
    for module in _modules(model):
        tuning = tunings.get(module)
        for name, parameter in getattr(model, module).named_parameters():
            beside = is_adapter(name) or is_gate(name)
            parameter.requires_grad_(tuning is not None and (tuning.adapter is None or beside))


def parameter_groups(
    model: nn.Module, train: Mapping[str, Tuning | float], lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: per module, weights with decay and one-dimensional ones without.

    Each: name, params, lr (scaled), lr_scale (the factor of the module, for a schedule), weight_decay.
    """
    tunings = _checked(model, train)
    groups: list[dict[str, Any]] = []
    for name in (m for m in _modules(model) if m in tunings):
        trained = [p for p in getattr(model, name).parameters() if p.requires_grad]
        if not trained:
            raise ConfigError(f"module '{name}' is to be trained but is frozen; call freeze() first")
        flat = [p for p in trained if len(_shape(p)) <= 1]
        matrices = [p for p in trained if len(_shape(p)) > 1]
        for suffix, params, decay in (("", matrices, weight_decay), (".no_decay", flat, 0.0)):
            if params:
                groups.append(
                    {
                        "name": name + suffix,
                        "params": params,
                        "lr": lr * tunings[name].lr,
                        "lr_scale": tunings[name].lr,
                        "weight_decay": decay,
                    }
                )
    return groups


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A module's parameters: `how` is frozen, full, or the adapter; `lr` the factor on the learning rate."""

    module: str
    parameters: int
    trainable: int
    how: str
    lr: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def count_parameters(model: nn.Module, train: Mapping[str, Tuning | float]) -> tuple[Counted, ...]:
    """Each module's parameters after freeze(); tied ones count once, an adapter's beside those it adapts."""
    tunings = _checked(model, train)
    return tuple(
        Counted(
            module=name,
            parameters=sum(_shape(p).numel() for p in getattr(model, name).parameters()),
            trainable=sum(_shape(p).numel() for p in getattr(model, name).parameters() if p.requires_grad),
            how=str(tunings.get(name, "frozen")),
            lr=tunings[name].lr if name in tunings else None,
        )
        for name in _modules(model)
    )


def describe(counted: tuple[Counted, ...]) -> Iterator[str]:
    """The counts as lines for the screen, with their sum."""
    yield f"{'module':15}  {'parameters':>14}  {'trainable':>14}  {'lr':>6}  how"
    for c in counted:
        lr = "-" if c.lr is None else f"{c.lr:g}"
        yield f"{c.module:15}  {c.parameters:14,}  {c.trainable:14,}  {lr:>6}  {c.how}"
    parameters, trainable = sum(c.parameters for c in counted), sum(c.trainable for c in counted)
    yield f"{'all':15}  {parameters:14,}  {trainable:14,}  {'':>6}  {trainable / parameters:.1%} trained"


def _shape(parameter: nn.Parameter) -> torch.Size:
    """A parameter that ZeRO-3 has sharded keeps its real shape in ds_shape."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _modules(model: nn.Module) -> tuple[str, ...]:
    return tuple(name for name in MODULES if hasattr(model, name))


def _checked(model: nn.Module, train: Mapping[str, Tuning | float]) -> dict[str, Tuning]:
    """Every value spelt out. Raises ConfigError where a module or a factor cannot be."""
    try:
        tunings = {name: Tuning.model_validate(value) for name, value in train.items()}
        check_modules(tunings)
    except ValueError as e:
        raise ConfigError(f"train: {e}") from None
    if missing := [name for name in tunings if not hasattr(model, name)]:
        raise ConfigError(f"train: this model has no {missing[0]} (it has {', '.join(_modules(model))})")
    return tunings
