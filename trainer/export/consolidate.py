"""From a checkpoint's ZeRO shards to whole fp32 tensors, on one process, without an engine."""

import contextlib
import io
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from data_pipeline.errors import DataError
from trainer.engine.checkpoint import TAG, verify
from trainer.models.stored import Stored


def consolidate(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every parameter of a verified checkpoint, frozen ones included: name -> float32 tensor.

    Raises DataError where the checkpoint does not verify, or a tensor came out empty: ZeRO-3 leaves size-0
    shells behind where a shard is missed.
    """
    verify(checkpoint)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=TAG)
    weights = {name: tensor.detach().float().contiguous() for name, tensor in state.items()}
    refuse_empty(weights, str(checkpoint))
    return weights


def lazily(checkpoint: Path) -> dict[str, Stored]:
    """As `consolidate`, each tensor put together from its shards when it is read.

    What was trained stays in the files until then; what was frozen, DeepSpeed reads at once, in its own
    precision. Call it on one rank.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=TAG, lazy_mode=True)
    return {name: Stored(tuple(t.shape), partial(_whole, name, t, checkpoint)) for name, t in state.items()}


def _whole(name: str, tensor: Any, checkpoint: Path) -> torch.Tensor:
    whole = tensor.contiguous().detach().float()
    refuse_empty({name: whole}, str(checkpoint))
    return whole


def refuse_empty(weights: dict[str, torch.Tensor], where: str) -> None:
    """Raise DataError naming the tensors of size 0."""
    empty = [name for name, tensor in weights.items() if tensor.numel() == 0]
    if empty:
        raise DataError(
            f"{where}: {len(empty)} of {len(weights)} tensors are empty (size 0): "
            f"{', '.join(empty[:5])}{' …' if len(empty) > 5 else ''}.\n"
            "  They were read without being gathered from the ranks; export from a checkpoint of the run."
        )
