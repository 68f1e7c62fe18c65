"""Exclusions against the shards: what they name exists, and they take away what the manifest counts."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.manifest import Exclusions, Shard
from data_pipeline.view import Books, Exclusion, count_row, read_exclusions

_SHOWN = 3


class ExclusionBooks:
    """Told of every row once, it counts again what each file of exclusions takes away."""

    def __init__(self, directory: Path, records: Sequence[Exclusions]):
        self.records = records
        self.books = [Books() for _ in records]
        self.left: dict[str, list[tuple[int, Exclusion]]] = {}  # by sample; what is met is taken out
        self.unreadable: list[str] = []
        for number, record in enumerate(records):
            try:
                for e in read_exclusions(directory, record):
                    self.left.setdefault(e.id, []).append((number, e))
            except (DataError, ValueError, TypeError) as e:
                self.unreadable.append(f"{record.path}: no list of exclusions: {e}")

    def row(self, row: dict[str, Any], shard: Shard) -> Iterator[str]:
        if (named := self.left.pop(row["id"], None)) is None:
            return
        held = {m["media_id"] for m in row["media"] if not m["error"]}
        for number, e in named:
            if e.media_id is not None and e.media_id not in held:
                yield f"{self.records[number].path}: sample {row['id']} has no image {e.media_id}"
        count_row(self.books, shard, row, named)

    def end(self) -> Iterator[str]:
        missing = sorted(self.left)
        if missing:
            shown = ", ".join(missing[:_SHOWN])
            paths = sorted({self.records[n].path for m in missing for n, _ in self.left[m]})
            yield f"{', '.join(paths)}: {len(missing)} sample(s) that no shard holds, for instance {shown}"
        for record, books in zip(self.records, self.books, strict=True):
            if (books.counts, books.reasons) != (record.counts, record.reasons):
                yield (
                    f"{record.path}: takes away {books.counts} for {books.reasons}; "
                    f"the manifest says {record.counts} for {record.reasons}"
                )
