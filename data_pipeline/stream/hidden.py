"""Which rows of a source its exclusions hide: found once from the ids, kept as sorted numbers."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.manifest import commit
from data_pipeline.view import View


def find(ids: Iterable[Iterable[str]], view: View) -> np.ndarray:
    """int64[hidden]: the rows, counted through all shards, that are not to be seen. `ids` comes by shard."""
    found, start = [np.empty(0, np.int64)], 0
    for of_shard in ids:
        names = pa.array(of_shard, pa.string())
        seen = np.zeros(len(names), bool)
        seen[view.kept_rows(names)] = True
        found.append(start + np.flatnonzero(~seen))
        start += len(names)
    return np.concatenate(found)


def before(hidden: np.ndarray) -> np.ndarray:
    """int64[hidden]: how many rows are seen before each hidden one."""
    return hidden - np.arange(len(hidden))


def row_of(i: int, before: np.ndarray) -> int:
    """The row of the i-th sample that is seen. O(log hidden)."""
    return i + int(np.searchsorted(before, i, side="right"))


def remembered(directory: Path, identity: list[Any]) -> tuple[Path, np.ndarray | None]:
    """Where rows found for this identity (plain JSON) are kept, and the rows where they are, mapped."""
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:40]
    path = directory / f"hidden-{key}.npy"
    try:
        return path, np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return path, None


def remember(path: Path, hidden: np.ndarray) -> None:
    with commit(path) as f:
        np.save(f, hidden)
