"""Tensors that are read when they are asked for: their names and shapes are known before."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from data_pipeline.errors import DataError


@dataclass(frozen=True)
class Stored:
    """One tensor: `read` gives it, in whatever precision it has."""

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def stored(tensors: Mapping[str, torch.Tensor]) -> dict[str, Stored]:
    """Tensors that are in memory already."""
    return {name: Stored(tuple(t.shape), partial(_same, t)) for name, t in tensors.items()}


class StoredWeights:
    """The tensors of some safetensors files, by name, each read when it is asked for."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Path] = {}
        for file in files:
            try:
                with safe_open(file, "pt") as f:  # the shapes stand in the header
                    for name in f.keys():  # noqa: SIM118
                        if name in self._files:
                            raise DataError(f"{name} stands in {self._files[name]} and in {file}")
                        self._files[name] = file
                        self.shapes[name] = tuple(f.get_slice(name).get_shape())
            except (OSError, SafetensorError) as e:
                raise DataError(f"{file}: not a readable safetensors file ({e})") from None

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` (exclusive) of a tensor."""
        with safe_open(self._files[name], "pt") as f:
            return f.get_slice(name)[start:stop]

    def all(self) -> dict[str, Stored]:
        """Every tensor, whole."""
        return {name: Stored(shape, partial(self._whole, name)) for name, shape in self.shapes.items()}

    def _whole(self, name: str) -> torch.Tensor:
        with safe_open(self._files[name], "pt") as f:
            return f.get_tensor(name)


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
