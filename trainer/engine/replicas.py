"""What every rank holds a copy of, compared: a copy that drifted apart trains on, and no other check sees it.

Compared are checksums of exact bits: one reading of what stands whole on a rank, and one small sum over all.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import deepspeed
import torch

from trainer.distributed import World, all_sum

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PART = 1 << 24
"""Elements that are summed at a time: a sum of small integers makes large ones of them first."""


def checksums(engine: deepspeed.DeepSpeedEngine, told: Mapping[str, Any]) -> dict[str, int]:
    """A number of 48 bits for the weights and buffers of each module that stand whole here, and for each
    entry of `told` (plain JSON)."""
    found = {
        f"weights of {name}": _of_tensors([*_whole(module.parameters()), *module.buffers()])
        for name, module in engine.module.named_children()
    }
    return found | {what: _of_text(json.dumps(value, sort_keys=True)) for what, value in told.items()}


def apart(world: World, sums: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """What is not the same on all ranks, and which ranks have it otherwise (all ranks, with equal keys)."""
    table = torch.zeros(world.size, len(sums), dtype=torch.float64)
    table[world.rank] = torch.tensor(list(sums.values()), dtype=torch.float64)
    of_ranks = torch.tensor(all_sum(world, *table.flatten().tolist())).view_as(table)
    columns = zip(sums, of_ranks.T.tolist(), strict=True)
    return {what: ranks for what, column in columns if (ranks := minority(column))}


def minority(values: Sequence[float]) -> tuple[int, ...]:
    """Ranks whose value is not that of more than half of all; all of them where no value is."""
    value, count = Counter(values).most_common(1)[0]
    return tuple(rank for rank, own in enumerate(values) if own != value or 2 * count <= len(values) > 1)


def _whole(parameters: Iterable[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Under ZeRO-3 those that are too small to be cut."""
    return [p.detach() for p in parameters if getattr(p, "ds_persist", True)]


def _of_tensors(tensors: Sequence[torch.Tensor]) -> int:
    sums = [
        part.view(_BITS[part.element_size()]).sum(dtype=torch.int64)
        for t in tensors
        for part in t.contiguous().view(-1).split(_PART)
    ]
    return _of_text(json.dumps(torch.stack(sums).tolist() if sums else []))


def _of_text(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])
