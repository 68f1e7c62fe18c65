"""A shard in Arrow IPC, in either layout: mapped where it is local, else read by the record batch.

Record batches differ in length, so which of them holds a row is found once (`layout`), from their heads and
their ids alone where the file is remote.
"""

import threading
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import pyarrow as pa

from data_pipeline.errors import DataError
from data_pipeline.sample import SCHEMA, Media, Sample, Segment
from data_pipeline.stream.place import File, Seekable
from data_pipeline.stream.shards.lru import Lru

_SEGMENT_FIELDS = ("type", "text", "media", "role", "turn", "loss")
_MEDIA_FIELDS = ("media_id", "width", "height", "error")
_LIGHT = ("id", "kind", "source", "segments", "media")
_HEAD = ("id", "source", "url")
_MAGIC = b"ARROW1"
_EVERY = tuple(SCHEMA.names)
_VIEWS = 16  # record batches of a mapped file, whose columns are views of the map: some 30 kB each


def _numbers(column: str, names: tuple[str, ...]) -> tuple[int, ...]:
    struct = SCHEMA.field(column).type.value_type
    return tuple(struct.get_field_index(name) for name in names)


_OF_SEGMENT, _OF_MEDIA = _numbers("segments", _SEGMENT_FIELDS), _numbers("media", _MEDIA_FIELDS)


class ArrowShard:
    """Rows by number. `ends` and `offsets` are what `layout` returned."""

    def __init__(self, file: File, ends: list[int], offsets: list[int] | None, cache: Lru) -> None:
        self._file, self._ends, self._offsets, self._cache = file, ends, offsets, cache
        self._mapped = _map(file)
        self._views = Lru(_VIEWS)  # here, and not in the cache of all shards: they hold the map
        self._readers: dict[tuple[str, ...], pa.RecordBatchFileReader] = {}
        self._lock = threading.Lock()

    def sample(self, n: int) -> Sample:
        batch, row = self._find(n, _EVERY)
        return Sample.from_row(batch.slice(row, 1).to_pylist()[0])

    def light(self, n: int) -> Sample:
        """Of the segments only what the token layout depends on; of the media their size and errors."""
        batch, row = self._find(n, _LIGHT)
        cell = {name: batch.column(name)[row] for name in _LIGHT}
        segments = _columns(cell["segments"].values, _OF_SEGMENT)
        media = _columns(cell["media"].values, _OF_MEDIA)
        return Sample(
            id=cell["id"].as_py(),
            kind=cell["kind"].as_py(),
            source=cell["source"].as_py(),
            segments=tuple(Segment(**dict(zip(_SEGMENT_FIELDS, s, strict=True))) for s in segments),
            media=tuple(Media(**dict(zip(_MEDIA_FIELDS, m, strict=True))) for m in media),
            image_bytes=(None,) * len(media),
        )

    def picture(self, n: int, media: int) -> bytes | None:
        batch, row = self._find(n, _EVERY)
        images = batch.column("images")[row]
        return images[media]["bytes"].as_py() if images.is_valid and 0 <= media < len(images) else None

    def head(self, n: int) -> tuple[str, str, str | None]:
        batch, row = self._find(n, _HEAD)
        return tuple(batch.column(name)[row].as_py() for name in _HEAD)

    def ids(self) -> Iterable[str]:
        for b in range(len(self._ends)):
            yield from self._batch(b, ("id",)).column("id").to_pylist()

    def _find(self, n: int, columns: tuple[str, ...]) -> tuple[pa.RecordBatch, int]:
        b = bisect_right(self._ends, n)
        return self._batch(b, columns), n - (self._ends[b - 1] if b else 0)

    def _batch(self, b: int, columns: tuple[str, ...]) -> pa.RecordBatch:
        if self._mapped is None:
            if self._offsets is not None:  # the streaming layout is read by the whole message
                columns = _EVERY
            key = (self._file.name, b, columns)
            return self._cache.get(key, lambda: self._fetched(b, columns), _weigh)
        return self._views.get(b, lambda: self._read(b, _EVERY), lambda _: 1)

    def _fetched(self, b: int, columns: tuple[str, ...]) -> pa.RecordBatch:
        """A batch of a remote file. No digest vouches for it: offsets that lie must never be followed."""
        batch = self._read(b, columns)
        batch.validate(full=True)
        return batch

    def _read(self, b: int, columns: tuple[str, ...]) -> pa.RecordBatch:
        if self._offsets is not None:
            opened = _opened(self._file, self._mapped)
            opened.seek(self._offsets[b])
            return pa.ipc.read_record_batch(pa.ipc.read_message(opened), SCHEMA)
        with self._lock:
            if columns not in self._readers:
                self._readers[columns] = _reader(_opened(self._file, self._mapped), columns)
            return self._readers[columns].get_batch(b)


def layout(file: File, samples: int) -> tuple[list[int], list[int] | None]:
    """(ends, offsets): rows up to and with each batch; in the streaming layout, where each begins.

    A local file is validated whole: every offset of every column. Of a remote one only the ids are read; the
    streaming layout, which has no table of its batches, is read through once. Raises DataError naming the
    file where it is no shard of `samples` samples.
    """
    fix = "Build the dataset again, or restore this shard from a copy."
    try:
        mapped = _map(file)
        begins = file.read_at(0, min(len(_MAGIC), file.size))
        rows, offsets = (_footer if begins == _MAGIC else _stream)(file, mapped)
    except (pa.ArrowInvalid, OSError) as e:
        raise DataError(f"shard {file.name} cannot be read: {e}\n  {fix}") from None
    if rows is None:
        raise DataError(f"shard {file.name} does not have the schema of a sample.\n  {fix}")
    if sum(rows) != samples:
        raise DataError(f"shard {file.name} holds {sum(rows)} samples, the manifest says {samples}.\n  {fix}")
    return list(accumulate(rows)), offsets


def _footer(file: File, mapped: pa.Buffer | None) -> tuple[list[int] | None, None]:
    whole = pa.ipc.open_file(_opened(file, mapped))
    if not whole.schema.equals(SCHEMA):
        return None, None
    reader = whole if mapped is not None else _reader(_opened(file, mapped), ("id",))
    rows = []
    for b in range(reader.num_record_batches):
        batch = reader.get_batch(b)
        batch.validate(full=True)
        rows.append(batch.num_rows)
    return rows, None


def _stream(file: File, mapped: pa.Buffer | None) -> tuple[list[int] | None, list[int]]:
    opened = _opened(file, mapped)
    if not pa.ipc.read_schema(opened).equals(SCHEMA):
        return None, []
    rows, offsets = [], []
    while (at := opened.tell()) < file.size:
        try:
            message = pa.ipc.read_message(opened)
        except EOFError:  # the mark at the end
            break
        batch = pa.ipc.read_record_batch(message, SCHEMA)
        batch.validate(full=True)
        rows.append(batch.num_rows)
        offsets.append(at)
    return rows, offsets


def _map(file: File) -> pa.Buffer | None:
    """The whole of a local file as memory: the buffer keeps the map, and no descriptor."""
    return None if file.local is None else pa.memory_map(str(file.local)).read_buffer()


def _opened(file: File, mapped: pa.Buffer | None) -> pa.NativeFile:
    return pa.PythonFile(Seekable(file), "r") if mapped is None else pa.BufferReader(mapped)


def _reader(opened: pa.NativeFile, columns: tuple[str, ...]) -> pa.RecordBatchFileReader:
    if columns == _EVERY:
        return pa.ipc.open_file(opened)
    wanted = [SCHEMA.get_field_index(name) for name in columns]
    return pa.ipc.open_file(opened, options=pa.ipc.IpcReadOptions(included_fields=wanted))


def _weigh(batch: pa.RecordBatch) -> int:
    return int(batch.nbytes) + 4096


def _columns(structs: pa.StructArray | None, fields: tuple[int, ...]) -> list[tuple[Any, ...]]:
    """These fields of a row's list of structs: several times faster than `as_py` on the whole."""
    if structs is None:
        return []
    return list(zip(*(structs.field(n).to_pylist() for n in fields), strict=True))
