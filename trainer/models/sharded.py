"""A model that no rank ever holds whole: made without memory, filled tensor by tensor as it is cut up."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from trainer.distributed import World, broadcast
from trainer.models.stored import Stored


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Within, parameters are made on the meta device and take no memory; buffers are computed as always.

    A layer's own initialisation then has nothing to write and draws no random number: neither does
    transformers where it reads all weights from files.
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            # Memory that was asked for and never written is none that the machine has given.
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    setting: Any = nn.Module
    setting.register_parameter = on_meta
    try:
        yield
    finally:
        setting.register_parameter = register


def fill(
    model: nn.Module, weights: Mapping[str, Stored], cut: Callable[[nn.Parameter], None], world: World
) -> None:
    """Cut up every parameter of `model` (all ranks), with the values of `weights` where they name it.

    Rank 0 alone reads, one tensor at a time; `cut` leaves each rank its part of rank 0's values. The others
    need names and shapes of `weights` only. Parameters that are tied stay tied. Those that `weights` does not
    name keep the values that they have.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    # One room for all that is received: freed between the parts that stay, it would leave holes in the heap
    # that the next tensor of the same size does not fit, since it has to be aligned.
    room = torch.empty(0 if world.is_main else max(p.numel() for p in model.parameters()))
    for prefix, module in model.named_modules():
        for name, parameter in [*module.named_parameters(recurse=False, remove_duplicate=False)]:
            if parameter not in made:
                source = weights.get(f"{prefix}.{name}" if prefix else name)
                made[parameter] = _filled(parameter, source, room, world)
                cut(made[parameter])
            setattr(module, name, made[parameter])
    for name, buffer in model.named_buffers():
        if name in weights:  # such as are part of a model's state; they are whole on every rank
            if world.is_main:
                buffer.copy_(weights[name].read())
            broadcast(world, buffer)


def _filled(parameter: nn.Parameter, source: Stored | None, room: torch.Tensor, world: World) -> nn.Parameter:
    if source is None:
        assert not parameter.is_meta, "neither values nor a source of them"
        return parameter
    if world.is_main:
        values = source.read().to(parameter.dtype)
    else:
        values = room[: parameter.numel()].view(parameter.shape).to(parameter.dtype)
    return nn.Parameter(values, parameter.requires_grad)
