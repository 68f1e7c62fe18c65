"""JSON Lines, plain or compressed, and tables of separated values. A bad line costs that line."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import pyarrow as pa

from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.rows.row import MAX_ROW, Row, Unit, broken, mapping

NUMBERED = (
    8 * 2**20
)  # lines of larger files are named by their offset: to count them means to read all before
_MAX_FIELD = 2**17  # characters of one cell of a table
_SKIP = 2**20
_MAX_SKIPPED = 2**30  # a "line" that goes on longer is no line: the rest of the file is given up
_BOM = b"\xef\xbb\xbf"


def json_lines(tree: Tree, unit: Unit, max_row: int = MAX_ROW) -> Iterator[Row]:
    """The lines that begin in this part's share of the bytes."""
    size = tree.size(unit.file)
    start, stop = size * unit.part // unit.parts, size * (unit.part + 1) // unit.parts
    with tree.open(unit.file) as f:
        if size <= NUMBERED:
            before = f.read(start)
            line = before.count(b"\n") + 1
            name, whole = "line", not before or before.endswith(b"\n")
        else:
            line, name = 0, "byte"
            f.seek(max(0, start - 1))
            whole = start == 0 or f.read(1) == b"\n"
        if not whole:  # the rest of a line that began in the part before
            _skip_line(f)
            line += 1
        yield from _rows(f, unit.file, line, name, stop, max_row)


def compressed_lines(tree: Tree, unit: Unit, max_row: int = MAX_ROW) -> Iterator[Row]:
    """A .gz or .zst of lines; part k of n takes every n-th line."""
    with tree.open(unit.file) as packed, unpacked(packed, unit.file) as f:
        for n, row in enumerate(_rows(f, unit.file, 1, "line", None, max_row)):
            if unit.owns(n):
                yield row


def unpacked(packed: BinaryIO, name: str) -> BinaryIO:
    """The stream inside a .gz or .zst; others as they are."""
    if name.lower().endswith((".gz", ".tgz")):
        return cast(BinaryIO, gzip.GzipFile(fileobj=packed))
    if name.lower().endswith(".zst"):
        return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(packed, "zstd")))
    return packed


def separated_values(tree: Tree, unit: Unit, max_row: int = MAX_ROW) -> Iterator[Row]:
    """CSV or TSV whose first line names the columns; part k of n takes every n-th row."""
    file, n, line = unit.file, -1, 0
    delimiter = "\t" if file.lower().endswith(".tsv") else ","
    csv.field_size_limit(_MAX_FIELD)  # of the whole process: another reader may have set its own
    with tree.open(file) as f:
        reader = csv.DictReader(io.TextIOWrapper(f, encoding="utf-8-sig", newline=""), delimiter=delimiter)
        try:
            for n, value in enumerate(reader):
                line = reader.line_num
                if not unit.owns(n):
                    continue
                if None in value:
                    yield broken(file, f"line {line}", f"more fields than the {len(value) - 1} columns")
                else:
                    yield Row(file, f"line {line}", value)
        except (csv.Error, UnicodeDecodeError) as e:  # a field is at most 128 KiB here: csv's own limit
            if unit.owns(n + 1):
                yield broken(
                    file, f"after line {line}", f"not a table: {e}; the rest of the file is not read"
                )


def _rows(f: BinaryIO, file: str, line: int, name: str, stop: int | None, max_row: int) -> Iterator[Row]:
    """Rows from where `f` stands to the first line that begins at `stop` or after it."""
    at = 0 if stop is None else f.tell()
    while stop is None or at < stop:
        where = f"{name} {line if name == 'line' else at}"
        try:
            data = f.readline(max_row + 1)
            at += len(data)
            if len(data) > max_row and not data.endswith(b"\n"):
                skipped = _skip_line(f)
                at += skipped
                yield broken(file, where, f"a line of more than {max_row:,} bytes", "row too large")
                if skipped >= _MAX_SKIPPED:
                    yield broken(file, where, "the line does not end; the rest of the file is not read")
                    return
                line += 1
                continue
        except (OSError, EOFError, zlib.error) as e:
            yield broken(file, where, f"cannot be read to its end: {e}", "unreadable file")
            return
        if not data:
            return
        if data.strip():
            yield parse(data.removeprefix(_BOM) if line <= 1 else data, file, where)
        line += 1


def parse(data: bytes, file: str, where: str) -> Row:
    """One JSON value as a row. Only UTF-8: the parser would guess other encodings from the first bytes."""
    value: Any
    try:
        value = json.loads(data.decode())
    except UnicodeDecodeError as e:
        return broken(file, where, f"not UTF-8: {e}")
    except (ValueError, RecursionError) as e:
        return broken(file, where, f"not JSON: {e}")
    return mapping(file, where, value)


def _skip_line(f: BinaryIO) -> int:
    skipped = 0
    while skipped < _MAX_SKIPPED:
        data = f.readline(_SKIP)
        skipped += len(data)
        if not data or data.endswith(b"\n"):
            break
    return skipped
