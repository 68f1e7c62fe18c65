"""Parquet that is byte-identical on every rerun: for curation in tools that know tables.

Row groups are closed by bytes; image bytes are stored as they are: to compress JPEG again only costs time.
"""

import io
from types import TracebackType
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

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


def _leaves(schema: pa.Schema) -> list[str]:
    """The dotted paths of the columns as Parquet names them, asked of Parquet itself."""
    empty = io.BytesIO()
    pq.write_table(schema.empty_table(), empty)
    columns = pq.ParquetFile(empty).schema
    return [columns.column(i).path for i in range(len(columns))]


def _is_bytes(leaf: str) -> bool:
    return leaf.endswith(".bytes")
