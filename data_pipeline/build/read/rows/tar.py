"""Tar files of WebDataset and img2dataset: `key.jpg key.txt key.json`, ... Nothing is extracted.

Headers are read one at a time, payloads only of members in a closed table of extensions and below a cap. The
end of a sound tar is a block of zeros: without it the file was cut, and says so even where the cut is clean.
"""

import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.rows.lines import parse, unpacked
from data_pipeline.build.read.rows.row import MAX_ROW, Row, Unit, broken

IMAGES = frozenset(("jpg", "jpeg", "png", "webp", "gif"))
TEXTS = frozenset(("txt", "text", "caption", "cls"))
# Loaders run these formats as programs or may be made to; whoever packs them beside images wants that.
_PROGRAMS = frozenset(
    ("pyd", "pkl", "pickle", "pth", "pt", "ckpt", "bin", "npy", "npz", "ten", "tb", "mp", "joblib")
)
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_BLOCK = 512
_MAX_HEADER = 64 * 1024  # a long name, or a block of pax records
_MAX_MEMBERS = 2_000_000  # of a tar
_MAX_IMAGES = 1024  # of a sample
_KEY = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$")  # WebDataset's rule: up to the first dot of the name
_PAX = re.compile(rb"(\d{1,9}) ([^=\n]+)=")


class _Cut(Exception):
    """The tar ends or breaks here; `inside` a member, whose sample is then lost with it."""

    def __init__(self, what: str, inside: bool = False):
        super().__init__(what)
        self.inside = inside


@dataclass
class _Sample:
    """The members of one key, as far as they were read."""

    key: str
    number: int
    value: dict[str, Any] = field(default_factory=dict)
    images: dict[str, bytes] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    nbytes: int = 0
    fault: tuple[str, str, bool] | None = None  # reason, detail, bad

    def row(self, file: str) -> Row:
        where = f"sample {self.key}"
        if self.fault is not None:
            reason, detail, bad = self.fault
            return broken(file, where, detail, reason, bad)
        return Row(file, where, {**self.value, "__key__": self.key}, self.images)

    def refuse(self, reason: str, detail: str, bad: bool = True) -> None:
        self.fault = self.fault or (reason, detail, bad)


def tar(tree: Tree, unit: Unit, max_row: int = MAX_ROW) -> Iterator[Row]:
    """Samples `part`, `part + parts`, ...; the others are passed over by their headers."""
    with tree.open(unit.file) as packed, unpacked(packed, unit.file) as f:
        yield from _Reader(f, unit, tree.max_bytes, max_row).rows()


@dataclass
class _Reader:
    f: BinaryIO
    unit: Unit
    max_image: int
    max_row: int
    keys: set[str] = field(default_factory=set)
    at: int = 0
    number: int = -1  # of the sample that is being read

    def rows(self) -> Iterator[Row]:
        file, sample = self.unit.file, None
        try:
            for header in self._headers():
                if header.isdir():
                    continue
                match = _KEY.match(header.name)
                if match is None:
                    self._pass(header.size)
                    yield from self._alone(header)
                    continue
                key, extension = match.group(1), match.group(2).lower()
                if sample is None or sample.key != key:
                    yield from self._done(sample)
                    sample = self._begun(key)
                self._member(sample, header, extension)
            yield from self._done(sample)
        except (_Cut, OSError, EOFError, zlib.error) as e:
            if sample is not None and getattr(e, "inside", True):
                self.number -= 1  # the fault stands in the place of the broken sample
            else:
                yield from self._done(sample)
            if self.unit.owns(self.number + 1):
                where = f"byte {self.at}" + (f", sample {sample.key}" if sample else "")
                yield broken(file, where, f"{e}; the rest of the file is not read", "broken tar")

    def _begun(self, key: str) -> _Sample:
        self.number += 1
        sample = _Sample(key, self.number)
        if key in self.keys:
            sample.refuse("duplicate key", f"'{key}' came before in this tar: its members belong together")
        self.keys.add(key)
        return sample

    def _done(self, sample: _Sample | None) -> Iterator[Row]:
        if sample is not None and self.unit.owns(sample.number):
            yield sample.row(self.unit.file)

    def _alone(self, header: tarfile.TarInfo) -> Iterator[Row]:
        """A member that belongs to no sample: `._x` of macOS, a name without an extension."""
        if self.unit.owns(max(self.number, 0)):
            detail = f"{header.name[:120]!r} has no key and no extension"
            yield broken(self.unit.file, f"member {header.name[:120]!r}", detail, "refused member", bad=False)

    def _member(self, sample: _Sample, header: tarfile.TarInfo, extension: str) -> None:
        name, last = header.name, extension.rpartition(".")[2]
        if header.type not in _PLAIN:
            sample.refuse("refused member", f"'{name}' is no plain file (tar type {header.type!r})")
        elif name.startswith("/") or ".." in name.split("/"):
            sample.refuse("refused member", f"'{name}' leaves the tar's folder")
        elif last in _PROGRAMS:
            sample.refuse("refused member", f"'{name}': .{last} can hold a program; it is never opened")
        elif extension in sample.seen:
            sample.refuse("duplicate member", f"'{name}' comes twice")
        sample.seen.add(extension)
        wanted = last in IMAGES or last == "json" or extension in TEXTS
        if sample.fault is not None or not wanted or not self.unit.owns(sample.number):
            self._pass(header.size)
            if sample.fault is None and not wanted:
                sample.value.setdefault("__unread__", []).append(extension)
            return
        limit = self.max_image if last in IMAGES else self.max_row
        sample.nbytes += header.size
        if header.size > limit or sample.nbytes > max(self.max_row, 4 * self.max_image):
            reason = "image file too large" if last in IMAGES else "row too large"
            sample.refuse(reason, f"'{name}' has {header.size:,} bytes, the limit is {limit:,}", bad=False)
        elif len(sample.images) >= _MAX_IMAGES:
            sample.refuse("row too large", f"more than {_MAX_IMAGES:,} images in a sample")
        if sample.fault is not None:
            self._pass(header.size)
            return
        self._read_into(sample, extension, self._payload(header))

    def _read_into(self, sample: _Sample, extension: str, data: bytes) -> None:
        if extension.rpartition(".")[2] in IMAGES:
            sample.images[extension] = data
        elif extension in TEXTS:
            try:
                sample.value[extension] = data.decode()
            except UnicodeDecodeError as e:
                sample.refuse("invalid record", f"{sample.key}.{extension} is not UTF-8: {e}")
        else:
            row = parse(data, self.unit.file, sample.key)
            if isinstance(row.value, dict):
                sample.value = {**row.value, **sample.value}
            else:
                sample.refuse("invalid record", f"{sample.key}.{extension}: {row.value.detail}")

    def _headers(self) -> Iterator[tarfile.TarInfo]:
        """Every member, with its long name; the payload must be read or passed before the next."""
        name: str | None = None
        size: int | None = None
        for _ in range(_MAX_MEMBERS):
            header = self._header()
            if header is None:
                return
            if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE):
                name, size = self._extended(header, name, size)
            elif header.type == tarfile.XGLTYPE:
                self._pass(header.size)
            else:
                header.name = _printable(name or header.name)
                header.size = header.size if size is None else size
                if not header.isreg():  # a link may state a size; no payload follows
                    header.size = 0
                yield header
                name = size = None
        raise _Cut(f"more than {_MAX_MEMBERS:,} members")

    def _header(self) -> tarfile.TarInfo | None:
        """The next header; None at the end's block of zeros."""
        block = self._read(_BLOCK)
        if not block:
            empty = self.at == 0
            raise _Cut("an empty file" if empty else "cut off: no block of zeros after the last member")
        if len(block) < _BLOCK:
            raise _Cut(f"cut off in the header of a member ({len(block)} of {_BLOCK} bytes)")
        if block.count(0) == _BLOCK:  # the end
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as e:
            raise _Cut(f"no header of a member: {e}") from None
        if header.size < 0:
            raise _Cut("a member of negative size")
        return header

    def _extended(
        self, header: tarfile.TarInfo, name: str | None, size: int | None
    ) -> tuple[str | None, int | None]:
        """The name and size that a GNU or pax block states for the member after it."""
        if header.size > _MAX_HEADER:
            raise _Cut(f"an extended header of {header.size:,} bytes, the limit is {_MAX_HEADER:,}")
        data = self._payload(header)
        if header.type == tarfile.GNUTYPE_LONGNAME:
            return data.rstrip(b"\0").decode("utf-8", "surrogateescape"), size
        if header.type == tarfile.GNUTYPE_LONGLINK:
            return name, size
        at = 0
        while match := _PAX.match(data, at):
            end = at + int(match.group(1))
            value = data[match.end() : end - 1]
            if match.group(2) == b"path":
                name = value.decode("utf-8", "surrogateescape")
            elif match.group(2) == b"size" and value.isdigit() and len(value) < 19:
                size = int(value)
            if end <= at:
                break
            at = end
        return name, size

    def _payload(self, header: tarfile.TarInfo) -> bytes:
        data = self._read(header.size)
        padding = self._read(-header.size % _BLOCK)
        if len(data) < header.size or len(padding) < -header.size % _BLOCK:
            detail = f"cut off inside '{_printable(header.name)}' ({len(data):,} of {header.size:,} bytes)"
            raise _Cut(detail, inside=True)
        return data

    def _pass(self, size: int) -> None:
        """Over a payload: by a seek where the bytes are plain, by reading where they are packed."""
        left = size + -size % _BLOCK
        if not left:
            return
        self.at += left
        # One byte less, then one that must be there: a seek beyond the end of a file says nothing.
        self.f.seek(left - 1, 1)
        if not self.f.read(1):
            raise _Cut(f"cut off inside a member of {size:,} bytes", inside=True)

    def _read(self, size: int) -> bytes:
        data = self.f.read(size)
        self.at += len(data)
        return data


def _printable(name: str) -> str:
    """A name with bytes that are no UTF-8 spelled out: it becomes part of ids and messages."""
    return name.encode("utf-8", "backslashreplace").decode()
