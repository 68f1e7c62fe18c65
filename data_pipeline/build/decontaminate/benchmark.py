"""A benchmark as it lies in a directory: pictures, and rows of questions and answers, also with pictures.

What cannot be read is named among the faults. Only data formats are opened, by a closed table.
"""

import base64
import binascii
import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.build.decontaminate.config import DecontaminateConfig
from data_pipeline.build.read.files import spelled
from data_pipeline.build.read.reading import IMAGE_SUFFIXES

_MAX_LINE = 64 * 2**20
_MAX_IMAGE = 64 * 2**20
_MAX_JSON = 256 * 2**20  # a JSON file is read whole
_MAX_DEPTH = 8
_IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF")
_BASE64_LEAST = 200  # characters; a shorter string is text


@dataclass(frozen=True)
class Picture:
    """`name`: the file, and the row within it."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Item:
    """One question with its answer, or whatever text a row holds."""

    name: str
    text: str


@dataclass(frozen=True)
class Fault:
    name: str
    detail: str


def read_benchmark(directory: Path, config: DecontaminateConfig) -> Iterator[Picture | Item | Fault]:
    """Everything in the directory, file by file in a fixed order; links are not followed."""
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        name = spelled(path.relative_to(directory).as_posix())
        suffix = path.suffix.lower()
        if suffix not in IMAGE_SUFFIXES and suffix not in _ROWS:
            continue
        most = _MAX_IMAGE if suffix in IMAGE_SUFFIXES else config.max_bytes
        if (size := path.stat().st_size) > most:
            yield Fault(name, f"{size:,} bytes, allowed are {most:,}")
            continue
        try:
            if suffix in IMAGE_SUFFIXES:
                yield Picture(name, path.read_bytes())
                continue
            for number, row in enumerate(_ROWS[suffix](path), 1):
                yield from _of_row(f"{name}, row {number}", row, config)
        except (OSError, ValueError, RecursionError, csv.Error, pa.ArrowException) as e:
            yield Fault(name, f"cannot be read on: {e}")


def item_texts(row: Any, config: DecontaminateConfig) -> list[str]:
    """What a row says, by keys of these names in any case: the question with its first answer; without a
    question each of the answers (five captions are five items). A row without such keys: all its strings."""
    if isinstance(row, dict):
        named = {k.lower(): v for k, v in row.items() if isinstance(k, str)}
        question = next((t for k in config.question_keys for t in _strings(named.get(k))), None)
        answers = next((a for k in config.answer_keys if (a := list(_strings(named.get(k))))), [])
        if question is not None:
            return ["\n".join([question, *answers[:1]])]
        if answers:
            return answers
    return ["\n".join(found)] if (found := list(_strings(row))) else []


def _of_row(name: str, row: Any, config: DecontaminateConfig) -> Iterator[Picture | Item]:
    for number, data in enumerate(_pictures(row), 1):
        yield Picture(f"{name}, image {number}", data)
    for text in item_texts(row, config):
        yield Item(name, text.encode("utf-8", "replace").decode())  # JSON can hold what is no Unicode


def _strings(value: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(value, str):
        if value.strip() and _as_image(value) is None:
            yield value.strip()
    elif depth < _MAX_DEPTH and isinstance(value, dict):
        for v in value.values():
            yield from _strings(v, depth + 1)
    elif depth < _MAX_DEPTH and isinstance(value, list):
        for v in value:
            yield from _strings(v, depth + 1)


def _pictures(value: Any, depth: int = 0) -> Iterator[bytes]:
    """Encoded images inside a row: raw bytes, or base64 as in the TSV files of several benchmarks."""
    if isinstance(value, str | bytes):
        if (data := _as_image(value)) is not None:
            yield data
    elif depth < _MAX_DEPTH and isinstance(value, dict | list):
        for v in value.values() if isinstance(value, dict) else value:
            yield from _pictures(v, depth + 1)


def _as_image(value: str | bytes) -> bytes | None:
    if isinstance(value, str):
        if len(value) < _BASE64_LEAST or any(c.isspace() for c in value[:_BASE64_LEAST]):
            return None
        try:
            value = base64.b64decode(value.partition("base64,")[2] or value, validate=True)
        except (ValueError, binascii.Error):
            return None
    return value if value.startswith(_IMAGE_STARTS) else None


def _json(path: Path) -> Iterator[Any]:
    """The rows of a list, of an object's longest list, or of an object of objects; else the one object."""
    if (size := path.stat().st_size) > _MAX_JSON:
        raise ValueError(f"{size:,} bytes of JSON, allowed are {_MAX_JSON:,}: give it as JSON lines")
    whole = json.loads(path.read_bytes())
    if isinstance(whole, dict):
        lists = [v for v in whole.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        if lists:
            whole = max(lists, key=len)
        elif whole and all(isinstance(v, dict) for v in whole.values()):
            whole = list(whole.values())
    yield from whole if isinstance(whole, list) else [whole]


def _json_lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as f:
        while line := f.readline(_MAX_LINE):
            if not line.endswith(b"\n") and len(line) >= _MAX_LINE:
                raise ValueError(f"a line of more than {_MAX_LINE:,} bytes")
            if line.strip():
                yield json.loads(line)


def _table(delimiter: str) -> Callable[[Path], Iterator[Any]]:
    def rows(path: Path) -> Iterator[Any]:
        csv.field_size_limit(_MAX_LINE)
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as f:
            yield from csv.DictReader(f, delimiter=delimiter)

    return rows


def _parquet(path: Path) -> Iterator[Any]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=16):
            yield from batch.to_pylist()


_ROWS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".tsv": _table("\t"),
    ".csv": _table(","),
    ".parquet": _parquet,
}
