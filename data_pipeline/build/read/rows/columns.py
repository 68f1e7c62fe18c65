"""Parquet, and Arrow IPC (files and streams, as `datasets` saves them): a few rows at a time.

Batches are cut by their size in bytes: a row group of a thousand images is never in memory as a whole.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.rows.row import MAX_ROW, Row, Unit, broken, mapping

_ROWS = 32
_BATCH = 32 * 2**20  # bytes that the rows of a batch should have together
_BUFFER = 2**20
_MAGIC = b"ARROW1"
_WRONG = (pa.ArrowException, OSError, ValueError, OverflowError)  # what pyarrow raises for damaged bytes
_REST = "; the rest of the file is not read"


def parquet(tree: Tree, unit: Unit, max_row: int = MAX_ROW) -> Iterator[Row]:
    """Row groups `part`, `part + parts`, ...; a damaged one costs itself."""
    with tree.open(unit.file) as f:
        try:
            # With a buffer, and not ahead: else all of a row group is loaded before its first row.
            # Checksums of pages, where the writer left them, find damage that would still decode.
            source = pq.ParquetFile(f, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True)
            metadata = source.metadata
            counts = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
        except _WRONG as e:
            if unit.owns(0):
                yield broken(unit.file, "file", f"no Parquet file: {e}", "unreadable file")
            return
        for g, rows in enumerate(counts):
            if unit.owns(g):
                yield from _row_group(source, unit.file, g, sum(counts[:g]), rows, max_row)


def _row_group(
    source: pq.ParquetFile, file: str, g: int, first: int, rows: int, max_row: int
) -> Iterator[Row]:
    if not rows:
        return
    where = f"row {first}, row group {g}"
    each = source.metadata.row_group(g).total_byte_size // rows
    if each > max_row:
        yield broken(file, where, f"rows of {each:,} bytes, the limit is {max_row:,}", "row too large")
        return
    n = first
    try:
        size = max(1, min(_ROWS, _BATCH // max(1, each)))
        for batch in source.iter_batches(size, row_groups=[g], use_threads=False):
            yield from _batch(batch, file, n)
            n += batch.num_rows
    except _WRONG as e:
        yield broken(file, f"row {n}, row group {g}", f"cannot be decoded: {_short(e)}", "unreadable file")


def arrow(tree: Tree, unit: Unit, max_row: int = MAX_ROW) -> Iterator[Row]:
    """Record batches `part`, `part + parts`, ... of an IPC file or stream; mapped, where it lies here.

    A batch with wrong content costs itself; where the next one cannot be found, the rest is not read.
    """
    n = b = 0
    with _opened(tree, unit.file) as source:
        try:
            magic = source.read(len(_MAGIC))
            source.seek(0)
            for b, batch in enumerate(_record_batches(source, magic == _MAGIC)):
                if unit.owns(b):
                    yield from _slices(batch, unit.file, n, max_row)
                n += batch.num_rows
                b += 1
        except _WRONG as e:
            if unit.owns(b):
                detail = f"batch {b} cannot be decoded: {_short(e)}{_REST}"
                yield broken(unit.file, f"row {n}", detail, "unreadable file")


def _opened(tree: Tree, file: str) -> contextlib.AbstractContextManager[Any]:
    path = tree.local_path(file)
    if path is None or not tree.size(file):  # no empty file can be mapped
        return pa.PythonFile(tree.open(file), "r")
    return pa.memory_map(path)


def _record_batches(source: Any, is_file: bool) -> Iterator[pa.RecordBatch]:
    if not is_file:
        yield from pa.ipc.open_stream(source)
        return
    reader = pa.ipc.open_file(source)
    for b in range(reader.num_record_batches):
        yield reader.get_batch(b)


def _slices(batch: pa.RecordBatch, file: str, first: int, max_row: int) -> Iterator[Row]:
    try:
        batch.validate(full=True)  # offsets beyond their buffer would end the process, not raise
    except _WRONG as e:
        detail = f"{batch.num_rows:,} rows that cannot be decoded: {_short(e)}"
        yield broken(file, f"row {first}", detail, "unreadable file")
        return
    start = 0
    while start < batch.num_rows:
        part = batch.slice(start, _ROWS)
        if part.nbytes > _BATCH:
            part = batch.slice(start, 1)
        if part.num_rows == 1 and part.nbytes > max_row:
            detail = f"a row of {part.nbytes:,} bytes, the limit is {max_row:,}"
            yield broken(file, f"row {first + start}", detail, "row too large")
        else:
            yield from _batch(part, file, first + start)
        start += part.num_rows


def _batch(batch: pa.RecordBatch, file: str, first: int) -> Iterator[Row]:
    """Rows as Python values. Where one cannot be converted (text that is no UTF-8, a date), it is alone."""
    values: list[Any]
    try:
        values = batch.to_pylist()
    except _WRONG as e:
        if batch.num_rows == 1:
            yield broken(file, f"row {first}", f"a value that cannot be read: {_short(e)}")
            return
        for i in range(batch.num_rows):
            yield from _batch(batch.slice(i, 1), file, first + i)
        return
    for i, value in enumerate(values):
        yield mapping(file, f"row {first + i}", value)


def _short(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
