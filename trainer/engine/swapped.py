"""Optimizer state that DeepSpeed keeps on a drive between steps (ZeRO-Infinity), as tensors over its files.

Each group of parameters that is updated at once has a file for its weights and one for each moment: float32,
with some elements of padding behind. Mapped, a file is read and written as a tensor is, and of the host's
memory it takes the system's cache alone. DeepSpeed itself passes that cache by.
"""

import fcntl
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import deepspeed
import torch
from deepspeed.runtime.swap_tensor.optimizer_utils import OptimizerStateSwapInfo
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import nn

from data_pipeline.errors import PreflightError

_CLAIMED: dict[Path, IO[str]] = {}
"""Locks of this process, which end with it."""


def claim(path: str, rank: int) -> None:
    """Keep other processes from swapping into the directory `path` as this rank: files have no other name
    than its number. Raises PreflightError where one does."""
    lock = Path(path) / f"fovea-{rank}.lock"
    if lock in _CLAIMED:
        return
    file = lock.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise PreflightError(
            f"ds_config: zero_optimization.offload_optimizer.nvme_path: another run swaps into {path} on "
            f"{socket.gethostname()}, and both would write the same files.\n"
            "  Name another folder in a copy of the file, or wait for its end."
        ) from None
    _CLAIMED[lock] = file


def on_a_drive(engine: deepspeed.DeepSpeedEngine) -> bool:
    """Whether DeepSpeed keeps state on a drive: fragments of it have other values after the next step."""
    optimizer = engine.optimizer
    return isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3) and bool(optimizer.swap_optimizer)


@dataclass(frozen=True, kw_only=True)
class Swapped:
    """The files of group `number` of what `optimizer` updates, between two steps."""

    optimizer: DeepSpeedZeroOptimizer_Stage3
    number: int

    @staticmethod
    def of(optimizer: DeepSpeedZeroOptimizer_Stage3, number: int) -> "Swapped | None":
        """None where the group stays in memory: DeepSpeed leaves the small ones there."""
        if optimizer._swappable_optimizer_subgroup(number):
            return Swapped(optimizer=optimizer, number=number)
        return None

    def begin(self, moments: Iterable[str]) -> None:
        """Files of zeros for `moments`, where no step has made any yet."""
        parameter = self._parameter
        self.optimizer._optimizer_states_and_gradient_swap_in(self.number)
        for moment in moments:
            self.optimizer.optimizer.state[parameter][moment] = torch.zeros_like(parameter.detach())
        self.optimizer._writeback_swap_state(self.number, write_opt_state=True, write_gradients=False)

    def mapped(self, file: int) -> torch.Tensor:
        """float32[elements of the group] over a file: 0 is the weights', then comes each moment's in the
        order of `begin`. What is written to the tensor is written to the file."""
        info = self._info
        path = info.get_swap_paths()[file]
        return torch.from_file(path, shared=True, size=info.numel(), dtype=info.dtype())

    def flush(self) -> None:
        """What was written to mapped tensors is on the drive on return, where DeepSpeed reads it."""
        for path in self._info.get_swap_paths():
            with open(path, "rb") as f:
                os.fsync(f.fileno())

    @property
    def _parameter(self) -> nn.Parameter:
        return self.optimizer.fp32_partitioned_groups_flat[self.number]

    @property
    def _info(self) -> OptimizerStateSwapInfo:
        return self.optimizer.optimizer_swapper._get_param_swap_info(self._parameter)
