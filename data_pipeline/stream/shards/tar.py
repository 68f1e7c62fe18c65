"""A shard as a WebDataset tar, read at random by the index that the build wrote beside it.

The index says where each sample begins, so a sample is one read at an offset; the archive is never scanned.
Per sample `<key>.json` first, then `<key>.000.jpg`, `<key>.001.png`... by the number of the picture.
"""

import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.sample import Media, Sample, Segment
from data_pipeline.stream.place import File
from data_pipeline.stream.shards.lru import Lru

_BLOCK = 512
_FIRST_READ = 16 * 1024  # holds the columns of nearly every sample
_PICTURE = re.compile(r"\.(\d{3,})\.[a-z0-9]+")


class TarShard:
    """Samples by number. `index` holds the bytes of the file beside the archive.

    Raises DataError naming the archive where that is no index of it: its length, order and end are looked at
    here; `prove` follows every offset.
    """

    def __init__(self, file: File, index: bytes, samples: int, cache: Lru) -> None:
        self._file, self._cache = file, cache
        if len(index) != 8 * (samples + 1):
            raise _foreign(file, f"has {len(index):,} bytes, {samples:,} samples take {8 * (samples + 1):,}")
        self._offsets = np.frombuffer(index, "<u8")
        ordered = self._offsets[0] == 0 and bool(np.all(self._offsets[1:] > self._offsets[:-1]))
        if not ordered or np.any(self._offsets % _BLOCK):
            raise _foreign(file, "holds offsets that do not rise block by block")
        if self._offsets[-1] + 2 * _BLOCK > file.size:
            raise _foreign(file, f"ends at {self._offsets[-1]:,}, the archive has {file.size:,} bytes")

    def prove(self) -> None:
        """Follow every offset: a sample begins there, has one key, and ends where the next one begins."""
        for n in range(len(self._offsets) - 1):
            start, end = self._span(n)
            try:
                for _ in _members(self._file.read_at, start, end):
                    pass
            except ValueError as e:
                raise _foreign(self._file, f"says that sample {n} begins at byte {start:,}: {e}") from None

    def sample(self, n: int) -> Sample:
        data, members = self._whole(n)
        _, at, size = members[0]
        found = {number: data[at : at + size] for number, at, size in members[1:]}
        return self._sample(_object(data[at : at + size]), found)

    def light(self, n: int) -> Sample:
        return self._sample(self._columns(n), {})

    @staticmethod
    def _sample(row: dict[str, Any], pictures: dict[int, bytes]) -> Sample:
        images = [{"bytes": pictures.get(i)} for i in range(len(row["media"]))]
        sample = Sample.from_row({**row, "images": images})
        _check_types(sample)
        for segment in sample.segments:
            _check_types(segment)
        for media in sample.media:
            _check_types(media)
        return sample

    def picture(self, n: int, media: int) -> bytes | None:
        if self._file.local is not None:
            members = _members(self._file.read_at, *self._span(n))
            return next((self._file.read_at(at, size) for k, at, size in members if k == media), None)
        data, held = self._whole(n)
        return next((data[at : at + size] for k, at, size in held if k == media), None)

    def head(self, n: int) -> tuple[str, str, str | None]:
        row = self._columns(n)
        return row["id"], row["source"], row["url"]

    def ids(self) -> Iterable[str]:
        """A row that is no sample has no id: no exclusion can name it, and who reads it is told."""
        for n in range(len(self._offsets) - 1):
            try:
                yield str(self._columns(n)["id"])
            except (ValueError, LookupError, RecursionError):
                yield ""

    def _columns(self, n: int) -> dict[str, Any]:
        """Everything but the pictures: the first member. Raises ValueError where it is no JSON object."""
        start, end = self._span(n)
        data = self._file.read_at(start, min(end - start, _FIRST_READ))
        name, size = _header(data[:_BLOCK])
        if size > end - start:
            raise ValueError(f"{name!r} of {size:,} bytes goes beyond its sample")
        if len(data) < _BLOCK + size:
            data += self._file.read_at(start + len(data), _BLOCK + size - len(data))
        return _object(data[_BLOCK : _BLOCK + size])

    def _whole(self, n: int) -> tuple[bytes, list[tuple[int, int, int]]]:
        """The bytes of a sample, and its files in those: see `_members`."""

        def make() -> tuple[bytes, list[tuple[int, int, int]]]:
            start, end = self._span(n)
            data = self._file.read_at(start, end - start)
            return data, list(_members(lambda at, length: data[at : at + length], 0, len(data)))

        if self._file.local is not None:  # the page cache holds it already
            return make()
        found: tuple[bytes, list[tuple[int, int, int]]] = self._cache.get(
            (self._file.name, n), make, lambda whole: len(whole[0]) + 256
        )
        return found

    def _span(self, n: int) -> tuple[int, int]:
        return int(self._offsets[n]), int(self._offsets[n + 1])


def _members(read: Callable[[int, int], bytes], start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number of the picture or -1 for the columns, offset, size) of each member between start and end.

    The columns come first. Raises ValueError where that is not exactly one sample.
    """
    key, at = "", start
    while at < end:
        name, size = _header(read(at, _BLOCK))
        number = -1
        if at == start:
            key = name.removesuffix(".json")
        else:
            found = _PICTURE.fullmatch(name.removeprefix(key))
            if found is None:
                raise ValueError(f"{name!r} is no picture of sample {key!r}")
            number = int(found.group(1))
        yield number, at + _BLOCK, size
        at += _BLOCK + (size + _BLOCK - 1) // _BLOCK * _BLOCK
    if at != end:
        raise ValueError(f"sample {key!r} ends at byte {at:,}, not at {end:,}")


def _header(block: bytes) -> tuple[str, int]:
    """(name, size) of a USTAR header, its checksum proven.

    Raises ValueError, also for links, folders and devices, which are no files of a sample. `tarfile` reads
    headers too, in four times the time, and a sample has several.
    """
    if len(block) != _BLOCK or sum(block) - sum(block[148:156]) + 8 * 0x20 != _octal(block[148:156]):
        raise ValueError("no header of a tar")
    name, size = block[:100].split(b"\0", 1)[0].decode(), _octal(block[124:136])
    if block[156:157] not in (b"0", b"\0") or block[345] or size < 0:  # 345: a name that goes on elsewhere
        raise ValueError(f"{name!r} is no regular file")
    return name, size


def _octal(field: bytes) -> int:
    return int(field.split(b"\0", 1)[0] or b"0", 8)


def _object(data: bytes) -> dict[str, Any]:
    row = json.loads(data)
    if not isinstance(row, dict):
        raise ValueError(f"a sample's columns are a JSON object, found {type(row).__name__}")
    return row


def _foreign(file: File, what: str) -> DataError:
    return DataError(
        f"index {file.name}.idx is not that of its tar: it {what}\n"
        "  Copy both again, or delete them and repeat the build command."
    )


def _plain_types(hint: Any) -> tuple[type, ...]:
    """`str | None` as (str, NoneType); `list[float]` as list; an int may stand for a float."""
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    plain = tuple(typing.get_origin(p) or p for p in parts)
    return (*plain, int) if float in plain else plain


_TYPES = {
    kind: {name: _plain_types(hint) for name, hint in typing.get_type_hints(kind).items()}
    for kind in (Sample, Segment, Media)
}


def _check_types(part: Sample | Segment | Media) -> None:
    """JSON has no schema: what is not of its column's type is found here, not where it is used."""
    for name, allowed in _TYPES[type(part)].items():
        if not isinstance(value := getattr(part, name), allowed):
            raise TypeError(f"{name} is {type(value).__name__}, not {allowed[0].__name__}")
