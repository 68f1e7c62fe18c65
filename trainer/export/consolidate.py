"""From a checkpoint's ZeRO shards to whole fp32 tensors, on one process, without an engine."""

import contextlib
import io
from pathlib import Path

import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from data_pipeline.errors import DataError
from trainer.engine.checkpoint import TAG, verify


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


def refuse_empty(weights: dict[str, torch.Tensor], where: str) -> None:
    """Raise DataError naming the tensors of size 0."""
    empty = [name for name, tensor in weights.items() if tensor.numel() == 0]
    if empty:
        raise DataError(
            f"{where}: {len(empty)} of {len(weights)} tensors are empty (size 0): "
            f"{', '.join(empty[:5])}{' …' if len(empty) > 5 else ''}.\n"
            "  They were read without being gathered from the ranks; export from a checkpoint of the run."
        )
