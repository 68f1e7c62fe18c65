"""DeepSpeed's kernel `async_io` in plain Python: it takes minutes to compile, and is not what a test tries.

What is asked of a handle happens when it is waited for, not before: who reads earlier gets what was there.
"""

import os
from collections.abc import Callable
from types import SimpleNamespace

import torch
from deepspeed.ops.op_builder import AsyncIOBuilder

_PINNED: set[int] = set()


class _Handle:
    """The methods that DeepSpeed's swappers call."""

    def __init__(self, **options: object) -> None:
        self._asked: list[Callable[[], None]] = []

    def new_cpu_locked_tensor(self, length: int, like: torch.Tensor) -> torch.Tensor:
        made = torch.empty(length, dtype=like.dtype)
        _PINNED.add(made.untyped_storage().data_ptr())
        return made

    def free_cpu_locked_tensor(self, tensor: torch.Tensor) -> None:
        _PINNED.discard(tensor.untyped_storage().data_ptr())

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in _PINNED

    def async_pread(self, tensor: torch.Tensor, path: str, offset: int) -> int:
        return self._ask(tensor, lambda values: _read(path, values, offset))

    def async_pwrite(self, tensor: torch.Tensor, path: str, offset: int) -> int:
        return self._ask(tensor, lambda values: _write(path, values, offset))

    def wait(self) -> int:
        asked, self._asked = self._asked, []
        for do in asked:
            do()
        return len(asked)

    def _ask(self, tensor: torch.Tensor, do: Callable[[memoryview], None]) -> int:
        assert self.is_pinned(tensor)
        values = memoryview(tensor.detach().numpy()).cast("B")
        self._asked.append(lambda: do(values))
        return 0


def _read(path: str, values: memoryview, offset: int) -> None:
    file = os.open(path, os.O_RDONLY)
    done = os.preadv(file, [values], offset)
    os.close(file)
    assert done == len(values), path


def _write(path: str, values: memoryview, offset: int) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    done = os.pwrite(file, values, offset)
    os.close(file)
    assert done == len(values), path


def without_kernel() -> None:
    """From now on DeepSpeed swaps by these, in this process."""
    AsyncIOBuilder.load = lambda self, verbose=False: SimpleNamespace(aio_handle=_Handle)
