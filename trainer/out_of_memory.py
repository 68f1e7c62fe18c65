"""A rank whose memory does not suffice for a step says what it held, and what it was at."""

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import nn

from data_pipeline.errors import TransientError
from trainer.run import Run

_HOST = ("can't allocate memory", "not enough memory")
"""What torch says, as a plain RuntimeError, where the host has none left."""


@contextmanager
def explained(run: Run) -> Iterator[None]:
    """Raises TransientError in place of the allocator's: repeated, the step may find more ranks, or a recipe
    that asks for less."""
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if not _is_out_of_memory(e):
            raise
        first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise TransientError(
            f"stage '{run.stage.name}': rank {run.world.rank} ran out of memory in step "
            f"{run.state.step + 1}: {first}\n  It held {_held(run)}.\n  The step: {_asked(run)}.\n"
            "  Less takes: a smaller micro_batch, sequence_length, images_per_row or patches_per_row; "
            "activation_checkpointing: true; ds_config: zero3-offload; more ranks.\n"
            "  The same command goes on from the newest checkpoint; a changed recipe is another run."
        ) from None


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(s in str(error) for s in _HOST)


def _held(run: Run) -> str:
    parts = {
        "weights": [getattr(p, "ds_tensor", p) for p in run.engine.module.parameters()],
        "optimizer": list(_state(run)),
    }
    said = [f"{name} {_gib(sum(t.numel() * t.element_size() for t in of))}" for name, of in parts.items()]
    if run.world.device.type == "cuda":
        said.append(f"at its peak {_gib(torch.cuda.max_memory_allocated())} on its device")
    return ", ".join([*said, f"{_gib(psutil.Process().memory_info().rss)} in the host's memory"])


def _state(run: Run) -> Iterator[torch.Tensor]:
    optimizer = run.engine.optimizer
    for weight, state in getattr(optimizer, "optimizer", optimizer).state.items():
        yield from (t for t in (weight, *state.values()) if isinstance(t, torch.Tensor | nn.Parameter))


def _asked(run: Run) -> str:
    micro_batches = run.stream.rows
    pieces = [piece for rows in micro_batches for row in rows for piece in row]
    if not pieces:
        return "no rows"
    most = max(sum(p.patches for row in rows for p in row) for rows in micro_batches)
    longest = max(pieces, key=lambda p: (p.patches, p.tokens))
    return (
        f"micro-batches of {run.stage.micro_batch} rows of {run.stage.sequence_length} tokens, {most:,} "
        f"patches in the largest; its largest sample is row {longest.index} of '{longest.source}' "
        f"({longest.tokens:,} tokens, {longest.images} images, {longest.patches:,} patches)"
    )


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.3g} GiB"
