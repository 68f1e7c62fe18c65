"""A WARC or ARC file, plain, gzip or zstd, as raw records: bounded in memory, found again after damage.

A record that cannot be cut out is one `Broken`; reading goes on at the next place that begins a record.
"""

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from data_pipeline.build.read.packed import Damaged, Unpacker, Zlib, Zstd, zstd_dictionary
from data_pipeline.build.read.reading import begins_with

MAX_HEAD = 128 * 2**10
_CHUNK = 256 * 2**10
_LONGEST_LINE = 12_000  # more than the first line of a record, or a usual head, has
# Text packs to a tenth, zeros to a thousandth: what grows beyond both of these is a bomb.
_MAX_RATIO, _MAX_FREE = 200, 64 * 2**20
_PACKED = 32 * 2**10  # members are small: what is read beyond one is read again for the next
_GZIP, _ZSTD = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
# "Zstandard compression of WARC files" (IIPC): a skippable frame at the start may hold a dictionary.
_DICTIONARY = b"\x5d\x2a\x4d\x18"
_MAX_DICTIONARY = 16 * 2**20
_BLANK = b"\r\n \t"
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_WARC = rb"WARC/[0-9]\.[0-9]{1,2}\r?\n(?=[A-Za-z][A-Za-z0-9-]{0,60}[ \t]*:)"
_ARC = rb"[a-z][a-z0-9+.-]{1,20}:[^\s]{1,8000} [^\s]{1,64} [0-9]{12,14} [^\n]{1,2000}\r?\n"
_START = re.compile(_WARC + rb"|" + _ARC)
_NEXT = re.compile(rb"(?=" + _WARC + rb")|\n(?=" + _ARC + rb")")
_LENGTH = re.compile(rb"^content-length:[ \t]*([0-9]{1,15})[ \t\r]*$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class RawRecord:
    """`offset` and `length` (bytes in the file) find it again, where `seekable`."""

    number: int
    offset: int
    length: int
    seekable: bool
    data: bytes  # head and block
    head: int  # bytes of the head


@dataclass(frozen=True)
class Broken:
    """Bytes that are no record."""

    number: int
    offset: int
    detail: str


def raw_records(file: BinaryIO, max_bytes: int) -> Iterator[RawRecord | Broken]:
    """Every record of a seekable file; one of more than `max_bytes` is a `Broken`.

    At most about three records are held at once. Raises OSError where the file cannot be read.
    """
    yield from _numbered(file, _packing(file), max_bytes)


def record_at(file: BinaryIO, offset: int, length: int, max_bytes: int) -> RawRecord | Broken:
    """The one record that the index says lies there."""
    packing = _packing(file)
    file.seek(offset)
    data = file.read(min(length, max_bytes + MAX_HEAD))
    if isinstance(packing, _Packing):
        packing = replace(packing, start=0)
    found = next(_numbered(io.BytesIO(data), packing, max_bytes), None)
    return found or Broken(0, offset, "no record where the index says that one is")


@dataclass(frozen=True)
class _Packing:
    """A chain of members from `start` on, each of which begins with `magic`."""

    name: str
    magic: bytes
    unpacker: Callable[[], Unpacker]
    first: int  # bytes at a member's start that are enough to unpack some of it
    start: int = 0


def _packing(file: BinaryIO) -> _Packing | Broken | None:
    """How a file is packed; None: not at all; Broken: by a dictionary that cannot be had."""
    file.seek(0)
    start = file.read(8)
    if start.startswith(_GZIP):
        return _Packing("gzip member", _GZIP, Zlib, 1024)
    frames = _Packing("zstd frame", _ZSTD, Zstd, _CHUNK)
    if not start.startswith(_DICTIONARY):
        return frames if start.startswith(_ZSTD) else None
    size = int.from_bytes(start[4:8], "little")
    if size > _MAX_DICTIONARY:
        return Broken(0, 0, f"a zstd dictionary of {size:,} bytes, at most {_MAX_DICTIONARY:,} are read")
    try:
        dictionary = zstd_dictionary(file.read(size), _MAX_DICTIONARY)
    except Damaged as e:
        return Broken(0, 0, str(e))
    return replace(frames, unpacker=lambda: Zstd(dictionary), start=8 + size)


def _numbered(
    file: BinaryIO, packing: _Packing | Broken | None, max_bytes: int
) -> Iterator[RawRecord | Broken]:
    if isinstance(packing, Broken):
        yield packing
        return
    if packing is None:
        file.seek(0)
    found = _plain(file, max_bytes) if packing is None else _of_members(file, packing, max_bytes)
    for number, record in enumerate(found):
        yield replace(record, number=number)


def _plain(file: BinaryIO, max_bytes: int) -> Iterator[RawRecord | Broken]:
    yield from _records(_Window(file.read), max_bytes)


def _of_members(file: BinaryIO, packing: _Packing, max_bytes: int) -> Iterator[RawRecord | Broken]:
    """Records of a chain of members: one each as the standard asks, or many in one."""
    offset: int | None = packing.start
    while offset is not None:
        member = _Member(file, offset, packing)
        complained = False
        held: RawRecord | None = None
        count = 0
        for record in _records(_Window(member.read), max_bytes):
            if held is not None:
                yield replace(held, offset=offset, seekable=False)
            held = None
            count += 1
            if isinstance(record, Broken):
                complained = True
                yield replace(record, offset=offset, detail=f"{record.detail}{member.said()}")
            else:
                held = record
        if held is not None and not member.damage:
            alone = count == 1 and member.end is not None
            yield replace(held, offset=offset, length=(member.end or offset) - offset, seekable=alone)
        if member.damage and not complained:
            yield Broken(0, offset, member.damage)
        after = member.end
        offset = _next_member(file, offset + 1 if after is None else after, packing)
        if after is not None and offset != after and _has_bytes(file, after, offset):
            yield Broken(0, after, f"bytes between one {packing.name} and the next that are none")


def _records(window: "_Window", max_bytes: int) -> Iterator[RawRecord | Broken]:
    while True:
        window.skip_blank()
        if not window.fill(1):
            return
        window.fill(MAX_HEAD)
        at, data = window.position, window.data
        head = _head(data)
        if head is None:
            begins = begins_with(bytes(data[:24]))
            # Where a head has no end, none that begins in these bytes has one, but perhaps the last.
            window.drop(max(1, len(data) - _LONGEST_LINE) if _START.match(data) else 1)
            window.skip_to_record()
            skipped = window.position - at
            yield Broken(0, at, f"{skipped:,} bytes that are no record, beginning with {begins}")
            continue
        length = _block_length(data, head)
        if length is None or length > max_bytes:
            said = "no Content-Length" if length is None else f"{length:,} bytes, more than {max_bytes:,}"
            window.drop(head)
            window.skip_to_record()
            yield Broken(0, at, f"a record of {said}")
            continue
        window.fill(head + length + 4)
        end = head + length
        if len(data) < end or (not _ends(data, end) and _NEXT.search(data, head, end)):
            found = len(data) - head
            window.drop(head)
            window.skip_to_record()
            detail = "its Content-Length reaches into the next record"
            if found < length:
                detail = f"cut off: {length:,} bytes announced, at most {found:,} are there"
            yield Broken(0, at, detail)
            continue
        clean = _ends(data, end)
        yield RawRecord(0, at, end, True, bytes(data[:end]), head)
        window.drop(end)
        if not clean:
            skipped = window.skip_to_record()
            detail = f"{skipped:,} bytes after a record's end: its Content-Length is too small"
            yield Broken(0, at + end, detail)


def _head(data: bytearray) -> int | None:
    """Bytes of the head at the start of `data`, its blank line with it; None where none begins there."""
    line = _START.match(data)
    if line is None:
        return None
    if not data.startswith(b"WARC/"):
        return line.end()  # ARC: one line
    end = _HEAD_END.search(data, line.end() - 2, MAX_HEAD)
    return end.end() if end else None


def _block_length(data: bytearray, head: int) -> int | None:
    if data.startswith(b"WARC/"):
        found = _LENGTH.search(data, 0, head)
        return int(found.group(1)) if found else None
    last = bytes(data[:head]).rsplit(b" ", 1)[-1].strip()
    return int(last) if last.isdigit() and len(last) <= 15 else None


def _ends(data: bytearray, end: int) -> bool:
    """Whether a record may end there: at the file's end, a blank line, or the next record."""
    tail = bytes(data[end : end + 4])
    return (
        len(tail) < 2 or tail.startswith((b"\r\n\r\n", b"\n\n", b"\n")) or _START.match(data, end) is not None
    )


class _Window:
    """The bytes of a stream from `position` on, as far as they were asked for."""

    def __init__(self, read: Callable[[int], bytes]):
        self._read = read
        self.data = bytearray()
        self.position = 0

    def fill(self, size: int) -> bool:
        """Have `size` bytes, or all there are; whether there is one."""
        while len(self.data) < size:
            piece = self._read(max(_CHUNK, min(size - len(self.data), 2**22)))
            if not piece:
                break
            self.data += piece
        return bool(self.data)

    def drop(self, size: int) -> None:
        size = min(size, len(self.data))
        del self.data[:size]
        self.position += size

    def skip_blank(self) -> None:
        while self.fill(1):
            blank = len(self.data) - len(self.data.lstrip(_BLANK))
            self.drop(blank)
            if self.data:
                return

    def skip_to_record(self) -> int:
        """Drop what stands before the next line that begins a record; how many bytes that was."""
        start = self.position
        if self.fill(_LONGEST_LINE) and _START.match(self.data):
            return 0
        while self.fill(2 * _LONGEST_LINE):
            found = _NEXT.search(self.data)
            if found is not None:
                self.drop(found.end())
                break
            left = _LONGEST_LINE if len(self.data) >= 2 * _LONGEST_LINE else 0
            self.drop(len(self.data) - left)
        return self.position - start


class _Member:
    """One member, unpacked piece by piece. `end` is where it ends in the file, once it does."""

    def __init__(self, file: BinaryIO, offset: int, packing: _Packing):
        self._file = file
        self._name = packing.name
        self._unpacker = packing.unpacker()
        self._start = self._read = offset
        self._unpacked = 0
        self.end: int | None = None
        self.damage: str | None = None

    def read(self, size: int) -> bytes:
        while self.end is None and self.damage is None:
            packed = b""
            if hungry := self._unpacker.hungry:
                self._file.seek(self._read)
                packed = self._file.read(_PACKED)
                self._read += len(packed)
            try:
                data = self._unpacker.unpack(packed, size)
            except Damaged as e:
                self.damage = f"damaged {self._name}: {e}"
                return b""
            if self._unpacker.ended:
                self.end = self._read - len(self._unpacker.unused)
            elif hungry and not packed and not data:
                self.damage = f"cut off inside a {self._name}"
            self._unpacked += len(data)
            if self._unpacked > _MAX_FREE + _MAX_RATIO * (self._read - self._start):
                self.damage, self.end = f"a bomb: unpacks to more than {_MAX_RATIO} times its size", None
                return b""
            if data:
                return data
        return b""

    def said(self) -> str:
        return f" ({self.damage})" if self.damage else ""


def _next_member(file: BinaryIO, offset: int, packing: _Packing) -> int | None:
    """Where the next member begins that holds a record."""
    magic = packing.magic
    file.seek(offset)
    if file.read(len(magic)) == magic and _begins_record(file, offset, packing):
        return offset
    overlap = len(magic) - 1
    file.seek(offset)
    data = file.read(_CHUNK)
    while data:
        at = data.find(magic)
        while at >= 0:
            if _begins_record(file, offset + at, packing):
                return offset + at
            at = data.find(magic, at + 1)
        step = max(len(data) - overlap, 1)
        offset += step
        file.seek(offset)
        data = file.read(_CHUNK)
        if len(data) <= overlap:
            return None
    return None


def _begins_record(file: BinaryIO, offset: int, packing: _Packing) -> bool:
    file.seek(offset)
    unpacker = packing.unpacker()
    try:
        start = unpacker.unpack(file.read(packing.first), 64)
    except Damaged:
        return False
    start = start.lstrip(_BLANK)
    if not start:
        return unpacker.ended  # some writers end a file with an empty member
    return start.startswith(b"WARC/") or re.match(rb"[a-z][a-z0-9+.-]{1,20}:", start) is not None


def _has_bytes(file: BinaryIO, start: int, end: int | None) -> bool:
    """Whether something lies between two members; zeros that pad a file are nothing."""
    file.seek(start)
    size = _CHUNK if end is None else min(end - start, _CHUNK)
    return bool(file.read(size).strip(b"\0"))
