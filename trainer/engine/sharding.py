"""Parameters cut into the ranks' parts one by one, before there is an engine: a whole model is nowhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch import nn
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from trainer.engine.initialize import without_shared_memory_operator


class Cut(Protocol):
    """What DeepSpeed's ZeRO-3 attaches to a parameter."""

    ds_numel: int
    ds_tensor: torch.Tensor  # this rank's part, padded to the length of all ranks' parts
    ds_secondary_tensor: torch.Tensor | None

    def partition_numel(self) -> int: ...

    def convert_to_zero_parameters(self, param_list: list[nn.Parameter]) -> None: ...


def as_cut(parameter: nn.Parameter) -> Cut:
    return cast(Cut, parameter)


def shards_parameters(config: dict[str, Any]) -> bool:
    """Whether `config` shards parameters."""
    return config.get("zero_optimization", {}).get("stage", 0) == 3


class Shards:
    """The parameters of a model under ZeRO-3's configuration `config`, as they are cut."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._first: nn.Parameter | None = None

    def cut(self, parameter: nn.Parameter) -> None:
        """Leave this rank its part of rank 0's values (all ranks). The precision stays."""
        if self._first is None:
            without_shared_memory_operator()
            deepspeed.init_distributed(verbose=False)  # over the process group that there is
            deepspeed.zero.Init(
                module=nn.ParameterList([parameter]), config_dict_or_path=self._config, dtype=torch.float32
            )
            self._first = parameter
        else:
            as_cut(self._first).convert_to_zero_parameters(param_list=[parameter])

    @contextmanager
    def gathered_where_read(self) -> Iterator[None]:
        """Within, peft gathers a layer's weights where an adapter's first values come from them (DoRA)."""
        # transformers holds it weakly, and peft asks there: it is in force while this frame holds it.
        in_force = HfDeepSpeedConfig(self._config)
        yield
        del in_force

    def finish(self, model: nn.Module) -> None:
        """Parameters in the precision and buffers on the device that `initialize` gives a plain model's.

        A model that is cut already is left as it is there. Until now it was float32: what an adapter reads of
        the weights it reads as precisely as from a plain one.
        """
        dtype = _precision(self._config)
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.dtype != dtype:
                parameter.data = parameter.data.to(dtype)
                part = getattr(parameter, "ds_tensor", None)
                if part is not None:
                    # hpZ's copy, which the next gathering makes anew.
                    as_cut(parameter).ds_secondary_tensor = None
                    pinned = part.is_pinned()
                    part.data = part.data.to(dtype)
                    if pinned:
                        part.data = get_accelerator().pin_memory(part.data)
        for buffer in model.buffers():
            buffer.data = buffer.data.to(get_accelerator().current_device_name())


def _precision(config: dict[str, Any]) -> torch.dtype:
    if config.get("bf16", {}).get("enabled"):
        return torch.bfloat16
    return torch.float16 if config.get("fp16", {}).get("enabled") else torch.float32
