"""A shard in Parquet: a row is found in its row group, which is decoded whole and kept for a while."""

import threading
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.errors import DataError
from data_pipeline.sample import SCHEMA, Sample
from data_pipeline.stream.place import File, Seekable
from data_pipeline.stream.shards.lru import Lru

_LIGHT = ("id", "schema_version", "kind", "source", "segments", "media")
_HEAD = ("id", "source", "url")
_EVERY = tuple(SCHEMA.names)


class ParquetShard:
    """Rows by number. Raises DataError naming the file where it is no shard of `samples` samples."""

    def __init__(self, file: File, samples: int, cache: Lru) -> None:
        self._file, self._cache = file, cache
        fix = "Build the dataset again, or restore this shard from a copy."
        try:
            # Only a remote file gains from reading a group's columns ahead, in few requests.
            self._parquet = pq.ParquetFile(pa.PythonFile(Seekable(file), "r"), pre_buffer=file.local is None)
        except (pa.ArrowInvalid, OSError) as e:
            raise DataError(f"shard {file.name} cannot be read: {e}\n  {fix}") from None
        metadata = self._parquet.metadata
        if not self._parquet.schema_arrow.equals(SCHEMA):
            raise DataError(f"shard {file.name} does not have the schema of a sample.\n  {fix}")
        if metadata.num_rows != samples:
            raise DataError(
                f"shard {file.name} holds {metadata.num_rows} samples, the manifest says {samples}.\n  {fix}"
            )
        self._ends = list(accumulate(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)))
        self._lock = threading.Lock()

    def sample(self, n: int) -> Sample:
        return Sample.from_row(self._row(n, _EVERY))

    def light(self, n: int) -> Sample:
        row = self._row(n, _LIGHT)
        return Sample.from_row({**row, "images": [{"bytes": None}] * len(row["media"])})

    def picture(self, n: int, media: int) -> bytes | None:
        group, row = self._find(n, _EVERY)
        images = group.column("images")[row]
        return images[media]["bytes"].as_py() if images.is_valid and 0 <= media < len(images) else None

    def head(self, n: int) -> tuple[str, str, str | None]:
        row = self._row(n, _HEAD)
        return row["id"], row["source"], row["url"]

    def ids(self) -> Iterable[str]:
        for g in range(len(self._ends)):
            yield from self._group(g, ("id",)).column("id").to_pylist()

    def _row(self, n: int, columns: tuple[str, ...]) -> dict[str, Any]:
        group, row = self._find(n, columns)
        found: dict[str, Any] = group.slice(row, 1).to_pylist()[0]
        return found

    def _find(self, n: int, columns: tuple[str, ...]) -> tuple[pa.Table, int]:
        g = bisect_right(self._ends, n)
        return self._group(g, columns), n - (self._ends[g - 1] if g else 0)

    def _group(self, g: int, columns: tuple[str, ...]) -> pa.Table:
        key = (self._file.name, g, columns)
        return self._cache.get(key, lambda: self._decoded(g, columns), lambda table: table.nbytes + 4096)

    def _decoded(self, g: int, columns: tuple[str, ...]) -> pa.Table:
        with self._lock:
            return self._parquet.read_row_group(g, columns=list(columns), use_threads=False)
