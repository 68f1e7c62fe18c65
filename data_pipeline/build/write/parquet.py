"""Parquet that is byte-identical on every rerun: for curation in tools that know tables.

Row groups are closed by bytes; image bytes are stored as they are: to compress JPEG again only costs time.
Maps become lists of {key, value}: `datasets` refuses a file with a map in it, and so do other tools.
"""

import io
from types import TracebackType
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.sample import SCHEMA

GROUP_ROWS = 64
GROUP_BYTES = 8 * 2**20


class ParquetWriter:
    """Writes rows of `schema` to an open binary file; `close` ends the file, which stays open."""

    def __init__(self, file: IO[bytes], schema: pa.Schema):
        leaves = _leaves(schema)
        self.schema = schema
        self.writer = pq.ParquetWriter(
            file,
            schema,
            compression={leaf: "NONE" if _is_bytes(leaf) else "ZSTD" for leaf in leaves},
            use_dictionary=[leaf for leaf in leaves if not _is_bytes(leaf)],
            write_statistics=[leaf for leaf in leaves if not _is_bytes(leaf)],
        )
        self.rows: list[dict[str, Any]] = []
        self.nbytes = 0

    def add(self, row: dict[str, Any], nbytes: int) -> None:
        """Take a row of about `nbytes` bytes. Groups hold at most 64 rows and, but for large rows, 8 MiB."""
        if self.rows and self.nbytes + nbytes > GROUP_BYTES:
            self._flush()
        self.rows.append(row)
        self.nbytes += nbytes
        if len(self.rows) >= GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self.writer.close()

    def __enter__(self) -> "ParquetWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    def _flush(self) -> None:
        if self.rows:
            self.writer.write_batch(pa.RecordBatch.from_pylist(self.rows, schema=self.schema))
            self.rows, self.nbytes = [], 0


def without_maps(kind: pa.DataType) -> pa.DataType:
    """The type with every map as a list of {key, value}."""
    if pa.types.is_map(kind):
        return pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)]))
    if pa.types.is_list(kind):
        return pa.list_(without_maps(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([f.with_type(without_maps(f.type)) for f in kind])
    return kind


SAMPLES = pa.schema([f.with_type(without_maps(f.type)) for f in SCHEMA], metadata=SCHEMA.metadata)


def to_parquet(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `SCHEMA` (`Sample.to_row`) as a row of `SAMPLES`."""
    media = [{**m, "scores": _pairs(m["scores"])} for m in row["media"]]
    return {**row, "scores": _pairs(row["scores"]), "media": media}


def from_parquet(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `SAMPLES` as Arrow gives one of `SCHEMA`: `Sample.from_row` takes it."""
    media = [{**m, "scores": _tuples(m["scores"])} for m in row["media"]]
    return {**row, "scores": _tuples(row["scores"]), "media": media}


def _pairs(scores: dict[str, float] | None) -> list[dict[str, Any]] | None:
    return None if scores is None else [{"key": k, "value": v} for k, v in scores.items()]


def _tuples(pairs: list[dict[str, Any]] | None) -> list[tuple[str, float]] | None:
    return None if pairs is None else [(p["key"], p["value"]) for p in pairs]


def _leaves(schema: pa.Schema) -> list[str]:
    """The dotted paths of the columns as Parquet names them, asked of Parquet itself."""
    empty = io.BytesIO()
    pq.write_table(schema.empty_table(), empty)
    columns = pq.ParquetFile(empty).schema
    return [columns.column(i).path for i in range(len(columns))]


def _is_bytes(leaf: str) -> bool:
    return leaf.endswith(".bytes")
