"""What a stage trains. Frozen means `requires_grad=False`, never a learning rate of zero.

A frozen parameter has no gradient, no optimizer state and no place in the reduction; the groups reach the
optimizer as plain data.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from data_pipeline.errors import ConfigError, nearest
from trainer.models.config import MODULES


def freeze(model: nn.Module, train: Mapping[str, float]) -> None:
    """Train the modules that `train` names; freeze the others. Raises ConfigError where none is left."""
    _check(train)
    for name in MODULES:
        getattr(model, name).requires_grad_(name in train)


def parameter_groups(
    model: nn.Module, train: Mapping[str, float], lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: per module, weights with decay and one-dimensional ones without.

    Each: name, params, lr (scaled), lr_scale (the factor of the module, for a schedule), weight_decay.
    """
    _check(train)
    groups: list[dict[str, Any]] = []
    for name in (m for m in MODULES if m in train):
        trained = [p for p in getattr(model, name).parameters() if p.requires_grad]
        if not trained:
            raise ConfigError(f"module '{name}' is to be trained but is frozen; call freeze() first")
        # A parameter that ZeRO-3 has sharded keeps its real shape in ds_shape.
        flat = [p for p in trained if len(getattr(p, "ds_shape", p.shape)) <= 1]
        matrices = [p for p in trained if len(getattr(p, "ds_shape", p.shape)) > 1]
        for suffix, params, decay in (("", matrices, weight_decay), (".no_decay", flat, 0.0)):
            if params:
                groups.append(
                    {
                        "name": name + suffix,
                        "params": params,
                        "lr": lr * train[name],
                        "lr_scale": train[name],
                        "weight_decay": decay,
                    }
                )
    return groups


def _check(train: Mapping[str, float]) -> None:
    for name, scale in train.items():
        if name not in MODULES:
            raise ConfigError(
                f"train: no module '{name}'{nearest(name, MODULES)} (there are {', '.join(MODULES)})"
            )
        if scale <= 0:
            raise ConfigError(f"train: {name} has factor {scale}; leave a module out to freeze it")
    if not train:
        raise ConfigError(f"train: nothing is trained; name at least one of {', '.join(MODULES)}")
