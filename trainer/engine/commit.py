"""What makes the written parts of all ranks a checkpoint: the record of them, and the directory's name."""

import errno
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch

from data_pipeline.errors import DataError
from data_pipeline.manifest import fsync_directory, json_bytes, write_json
from trainer.engine import fragment_files
from trainer.engine.checkpoint import COMPLETE, UNFINISHED, remove

T = TypeVar("T")

_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN}
"""What a file server answers that is there again a moment later."""
_WAITS_S = (0.1, 0.5, 2.0)


def tensors_of(
    records: Iterable[dict[str, dict[str, Any]]], shapes: dict[str, tuple[int, ...]]
) -> dict[str, Any]:
    """Name -> shape, dtype of the weight, sums by slot. Raises DataError where elements are missing."""
    tensors: dict[str, Any] = {}
    gathered: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        for key, fragment in record.items():
            gathered.setdefault(key, []).append(fragment)
    for key, fragments in sorted(gathered.items()):
        slot, _, name = key.partition("/")
        there, whole = sum(f["length"] for f in fragments), torch.Size(shapes[name]).numel()
        if there != whole:
            raise DataError(f"{key}: the ranks hold {there:,} of {whole:,} elements.")
        tensor = tensors.setdefault(name, {"shape": list(shapes[name]), "dtype": {}, "sums": {}})
        tensor["dtype"][slot] = fragments[0]["dtype"]
        tensor["sums"][slot] = fragment_files.added([f["sums"] for f in fragments])
    return tensors


def tell(path: Path, record: dict[str, Any]) -> None:
    """For rank 0, which may give the directory its name as soon as it sees `path`: nothing in it is touched
    from then on, not even to sync what rank 0 reads once and deletes."""
    temporary = path.with_suffix(UNFINISHED)
    temporary.write_bytes(json_bytes(record))
    temporary.replace(path)


def give_name(part: Path, final: Path, record: dict[str, Any]) -> None:
    """Make `part` the complete directory `final`."""
    patiently(write_json, part / COMPLETE, record)
    remove(final)

    def rename() -> None:
        if part.exists() or not final.exists():  # a file server may lose the answer of a success
            part.replace(final)

    patiently(rename)
    fsync_directory(final.parent)


def patiently(action: Callable[..., T], *arguments: Any) -> T:
    for seconds in _WAITS_S:
        try:
            return action(*arguments)
        except OSError as e:
            if e.errno not in _PASSING:
                raise
        time.sleep(seconds)
    return action(*arguments)
