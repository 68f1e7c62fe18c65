"""From a checkpoint's fragments to whole fp32 tensors, on one process, without an engine."""

from functools import partial
from pathlib import Path

import torch

from data_pipeline.errors import DataError
from trainer.engine.checkpoint import Checkpoint, verify
from trainer.engine.fragment_files import FragmentFiles, added, sums_of
from trainer.models.stored import Stored

_WEIGHT = "weight"


def consolidate(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every parameter of a verified checkpoint, frozen ones included: name -> float32 tensor.

    Raises DataError where the checkpoint does not verify, or a tensor is empty or other than it was saved.
    """
    return {name: tensor.read() for name, tensor in lazily(verify(checkpoint)).items()}


def lazily(checkpoint: Checkpoint) -> dict[str, Stored]:
    """As `consolidate`, each tensor put together from its fragments when it is read."""
    tensors = {}
    for part in checkpoint.parts:
        files = FragmentFiles(part.files)
        for name, about in part.tensors.items():
            shape, sums = tuple(about["shape"]), about["sums"][_WEIGHT]
            tensors[name] = Stored(shape, partial(_whole, files, name, shape, sums, checkpoint.path))
    return tensors | {other: tensors[name] for other, name in checkpoint.tied.items()}


def _whole(
    files: FragmentFiles, name: str, shape: tuple[int, ...], sums: str, checkpoint: Path
) -> torch.Tensor:
    flat = files.read(f"{_WEIGHT}/{name}", 0, torch.Size(shape).numel())
    refuse_empty({name: flat}, str(checkpoint))
    if added([sums_of(flat, 0)]) != sums:
        raise DataError(f"{checkpoint}: {name} came out other than it was saved.")
    return flat.view(shape).float()


def refuse_empty(weights: dict[str, torch.Tensor], where: str) -> None:
    """Raise DataError naming the tensors of size 0."""
    empty = [name for name, tensor in weights.items() if tensor.numel() == 0]
    if empty:
        raise DataError(
            f"{where}: {len(empty)} of {len(weights)} tensors are empty (size 0): "
            f"{', '.join(empty[:5])}{' …' if len(empty) > 5 else ''}.\n"
            "  They were read without being gathered from the ranks; export from a checkpoint of the run."
        )
