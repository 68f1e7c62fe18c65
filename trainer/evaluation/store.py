"""Answers as they come: a line a sample in a file a rank, so that a restart goes on where it stopped.

DIR/key.json       what the answers depend on; another key begins anew
DIR/rank_0.jsonl   {"id", ...} or {"id", "error"}, appended and synced batch by batch
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.errors import PreflightError
from data_pipeline.manifest import write_json
from trainer.distributed import World, barrier, from_main

Record = dict[str, Any]


class Store:
    """The answers in one directory. `done` are the ids that were answered before this run."""

    def __init__(self, directory: Path, rank: int, done: frozenset[str]) -> None:
        self.directory, self.done = directory, done
        self._file = directory / f"rank_{rank}.jsonl"

    def append(self, records: Sequence[Record]) -> None:
        """Once it returns, they survive the process."""
        with self._file.open("a", encoding="utf-8") as f:
            f.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
            f.flush()
            os.fsync(f.fileno())

    def read(self) -> dict[str, Record]:
        """The last word on each sample; an answer counts more than an error."""
        found: dict[str, Record] = {}
        for path in sorted(self.directory.glob("rank_*.jsonl")):
            for line in path.read_bytes().splitlines():  # of bytes: a text may hold U+2028
                record = json.loads(line)
                if "error" not in record or record["id"] not in found:
                    found[record["id"]] = record
        return found


@contextmanager
def opened(world: World, directory: Path, key: Any) -> Iterator[Store]:
    """The store for `key` (JSON), all ranks. Raises PreflightError where another evaluation writes to it."""
    held = None
    if world.is_main:
        directory.mkdir(parents=True, exist_ok=True)
        held = _lock(directory)
        _prepare(directory, key)
    try:
        done: frozenset[str] = frozenset()
        if world.is_main:
            read = Store(directory, 0, done).read()
            done = frozenset(i for i, r in read.items() if "error" not in r)
        done = from_main(world, done)
        yield Store(directory, world.rank, done)
        barrier(world)
    finally:
        if held is not None:
            os.close(held)


def _lock(directory: Path) -> int:
    held = os.open(directory / "lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        raise PreflightError(
            f"{directory}: another evaluation writes there; wait for it, or name --out"
        ) from None
    return held


def _prepare(directory: Path, key: Any) -> None:
    """Keep what fits the key, up to the last whole line of each file; else remove it all."""
    wanted, file = json.loads(json.dumps(key)), directory / "key.json"
    try:
        same = json.loads(file.read_text(encoding="utf-8")) == wanted
    except (FileNotFoundError, ValueError):
        same = False
    for path in directory.glob("rank_*.jsonl"):
        if not same:
            path.unlink()
            continue
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            with path.open("r+b") as f:
                f.truncate(len(whole))
    if not same:
        write_json(file, key)
