"""Where a dataset stands: a folder of this machine, or a URL of fsspec. Its files are read in ranges.

Nothing is downloaded whole: a reader asks for the bytes that it needs and keeps what it was told to keep.
"""

import io
import os
import posixpath
import re
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec

from data_pipeline.errors import ConfigError, DataError, PreflightError

# A closed list: others of fsspec run commands, unpack archives, or chain into one another.
PROTOCOLS = ("file", "memory", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_AHEAD = 64 * 1024
_TRIES = 3
_WAIT_S = 0.25  # before the second try; doubled before each later one


class File(Protocol):
    """One file of a dataset. `name`: its path or URL, for errors; `local`: its path if on this machine."""

    name: str
    size: int

    @property
    def local(self) -> Path | None: ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly these bytes. Raises DataError naming the file where they cannot be had."""
        ...


@dataclass(frozen=True)
class Place:
    """The directory of a dataset: `root` is an absolute path, or a URL without a slash at its end."""

    root: str

    @classmethod
    def at(cls, place: Path | str, base: Path = Path()) -> "Place":
        """A local path (relative ones count from `base`) or a URL. Raises ConfigError for other protocols."""
        text = str(place)
        scheme = _SCHEME.match(text)
        if scheme is None:
            return cls(str((base / text).absolute()))
        if scheme.group(1).lower() not in PROTOCOLS or "::" in text:
            raise ConfigError(
                f"'{text}' is no place to read from: allowed are paths and {', '.join(PROTOCOLS)} URLs"
            )
        return cls(text.rstrip("/"))

    @property
    def local(self) -> Path | None:
        return None if _SCHEME.match(self.root) else Path(self.root)

    def name(self, path: str) -> str:
        """The full name of a file of the dataset. Raises DataError where it would leave the directory."""
        if path.startswith("/") or ".." in path.split("/"):
            raise DataError(f"the manifest of {self.root} names '{path}', which lies outside of the dataset")
        return posixpath.join(self.root, path)

    def open(self, path: str) -> File:
        """Raises DataError where the file is missing or cannot be reached."""
        name = self.name(path)
        return LocalFile(name) if self.local else RemoteFile(name)

    def read(self, path: str) -> bytes:
        """The whole of a small file."""
        file = self.open(path)
        return file.read_at(0, file.size)

    def __str__(self) -> str:
        return self.root


class LocalFile:
    """Reads at offsets through one descriptor, which any number of threads and forked processes may share."""

    def __init__(self, name: str) -> None:
        self.name, self.local = name, Path(name)
        try:
            self._fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise DataError(f"{name} is missing") from None
        except OSError as e:
            raise DataError(f"{name} cannot be opened: {e.strerror}") from None
        # Closed when the last user lets go of it: a cache may drop a file that a thread still reads.
        weakref.finalize(self, os.close, self._fd)
        self.size = os.fstat(self._fd).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        parts, at = [], offset
        while at < offset + length:
            try:
                part = os.pread(self._fd, offset + length - at, at)
            except OSError as e:
                raise DataError(f"{self.name} cannot be read at {at:,}: {e.strerror}") from None
            if not part:
                raise DataError(f"{self.name} ends at byte {at:,}, {offset + length:,} are needed")
            parts.append(part)
            at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class RemoteFile:
    """Reads at offsets by ranged requests. What fails is asked for again, three times in all."""

    def __init__(self, name: str) -> None:
        self.name, self.local = name, None
        try:
            self._fs, self._path = fsspec.core.url_to_fs(name)
        except ImportError as e:
            raise PreflightError(f"to read {name} a package is missing: {e}") from None
        info = self._asked("info", self._path)
        if info.get("size") is None:
            raise DataError(f"{name}: its server does not say how long it is, so no ranges can be read")
        self.size = int(info["size"])
        # What changes when the file does, as far as this storage tells.
        self.stamp = str(info.get("ETag") or info.get("mtime") or info.get("LastModified") or "")

    def read_at(self, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        data = self._asked("cat_file", self._path, start=offset, end=offset + length)
        if len(data) != length:
            raise DataError(
                f"{self.name} gave {len(data):,} bytes where {length:,} from byte {offset:,} were asked for: "
                "it was cut or changed, or its server does not read in ranges"
            )
        return bytes(data)

    def _asked(self, what: str, *args: Any, **kwargs: Any) -> Any:
        last: Exception | None = None
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_WAIT_S * 2 ** (attempt - 1))
            try:
                return getattr(self._fs, what)(*args, **kwargs)
            except FileNotFoundError:
                raise DataError(f"{self.name} is missing") from None
            except Exception as e:  # noqa: BLE001 (every storage library has errors of its own)
                last = e
        raise DataError(f"{self.name} cannot be read: {type(last).__name__}: {last}") from last


class Seekable(io.RawIOBase):
    """A `File` as Python's file objects are: for libraries that read in their own order.

    Of a remote file at least `_AHEAD` bytes are asked for at a time, since such libraries read in small bits.
    """

    def __init__(self, file: File) -> None:
        super().__init__()
        self._file, self._at = file, 0
        self._ahead, self._ahead_at = b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._file.size - self._at)
        length = left if size is None or size < 0 else min(size, left)
        data = self._held(self._at, length) if self._file.local is None else None
        data = self._file.read_at(self._at, length) if data is None else data
        self._at += length
        return data

    def _held(self, at: int, length: int) -> bytes | None:
        """These bytes by way of the block that was read last; None where they are more than a block."""
        if length > _AHEAD:
            return None
        start = at - self._ahead_at
        if start < 0 or start + length > len(self._ahead):
            self._ahead, self._ahead_at, start = (
                self._file.read_at(at, min(_AHEAD, self._file.size - at)),
                at,
                0,
            )
        return self._ahead[start : start + length]

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
