"""The tree that a source may read from: a folder or one file, on this machine or behind a URL of fsspec.

Names are relative to the root and use `/`, so that no machine shows in the data. Nothing outside the root is
opened, whatever a document asks for: links are resolved before the check, addresses are never followed.
"""

import base64
import contextlib
import errno
import io
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from data_pipeline.build.read.reading import Fault, Picture, Stamp
from data_pipeline.errors import ConfigError, PreflightError
from data_pipeline.sample import Media, content_id

# A closed list: others of fsspec run commands, unpack archives, or chain into one another.
PROTOCOLS = ("file", "memory", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https")
FETCHABLE = ("http", "https")
NOT_FETCHED = "not fetched"  # `Media.error` of a picture that is only an address so far
MAX_IMAGE_BYTES = 64 * 2**20
_BUFFER = 2**20
_NO_RANGES = (
    "its server answers no request for a part of a file: copy the file here, or serve it by another one"
)
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_SPELLED = re.compile(rb"\\x([89a-f][0-9a-f])")  # a byte of a file's name that is no UTF-8
_DATA_URI = re.compile(r"^data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)


@dataclass(frozen=True)
class Tree:
    """A root and what may be opened below it. `only` is the one file that the source was pointed at.

    `keep_remote`: an http(s) picture becomes a reference (`Media.error` is NOT_FETCHED, no bytes) for the
    step that fetches; without it, it is refused like every other address.
    """

    fs: fsspec.AbstractFileSystem
    root: str
    only: str | None = None
    max_bytes: int = MAX_IMAGE_BYTES
    keep_remote: bool = False

    @classmethod
    def at(
        cls,
        place: str | Path,
        base: Path = Path(),
        *,
        max_bytes: int = MAX_IMAGE_BYTES,
        keep_remote: bool = False,
    ) -> "Tree":
        """The tree at a local path (relative ones count from `base`) or at a URL.

        Raises ConfigError for a protocol outside PROTOCOLS and where nothing is there; PreflightError where
        the protocol's package is not installed.
        """
        text = str(place)
        scheme = _SCHEME.match(text)
        protocol = scheme.group(1).lower() if scheme else "file"
        if protocol not in PROTOCOLS or "::" in text:
            raise ConfigError(
                f"'{text}' is no place to read from: allowed are paths and {', '.join(PROTOCOLS)} URLs"
            )
        try:
            with remote_errors():
                fs, path = fsspec.core.url_to_fs(text if scheme else str((base / text).resolve()))
                local = isinstance(fs, LocalFileSystem)
                path = os.path.realpath(_named_by_bytes(path)) if local else path.rstrip("/")
                # Over HTTP a folder is a page of links like any other: only its last slash tells.
                folder = protocol in FETCHABLE and text.endswith("/")
                is_file = os.path.isfile(path) if local else not folder and fs.isfile(path)
                found = is_file or fs.isdir(path)
        except ImportError as e:
            raise PreflightError(f"'{text}' needs a package that is not installed: {e}") from None
        except (OSError, ValueError) as e:
            raise ConfigError(f"'{text}' cannot be read: {e}") from None
        if not found:
            raise ConfigError(f"nothing at {text if scheme else path}")
        root, only = posixpath.split(path) if is_file else (path, None)
        return cls(fs, root, only and spelled(only), max_bytes, keep_remote)

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def files(self, suffixes: Sequence[str]) -> list[str]:
        """Names of the files that end in one of `suffixes`, sorted; the one file itself, whatever its name.

        Links are not followed. Raises OSError where the file system fails.
        """
        return [self.only] if self.only is not None else [s.name for s in self.listing(suffixes)]

    def listing(self, suffixes: Sequence[str], folder: str = "", *, deep: bool = True) -> list[Stamp]:
        """The files below `folder` (of `deep` False: directly in it) that end in one of `suffixes`."""
        top = self._inside(folder)
        if top is None:
            return []
        found = self._walk_local(top, deep) if self.is_local else self._find_remote(top, deep)
        ending = tuple(suffixes)
        return sorted((s for s in found if s.name.lower().endswith(ending)), key=lambda s: s.name)

    def stamp(self, name: str) -> Stamp:
        """Raises OSError where the file is gone."""
        path = self._opened(name)
        if self.is_local:
            return _local_stamp(name, os.stat(path))
        with remote_errors():
            return _remote_stamp(name, self.fs.info(path))

    def size(self, name: str) -> int:
        return self.stamp(name).size

    def local_path(self, name: str) -> str | None:
        """Where the file lies on this machine, for readers that map it; None behind a URL."""
        return self._opened(name) if self.is_local else None

    def exists(self, name: str) -> bool:
        path = self._inside(name)
        if path is None:
            return False
        with remote_errors():
            return os.path.isfile(path) if self.is_local else bool(self.fs.isfile(path))

    def open(self, name: str) -> BinaryIO:
        """A buffered, seekable binary file. Opening and reading raise OSError and nothing else."""
        path = self._opened(name)
        if self.is_local:
            return open(path, "rb")
        with remote_errors():
            return cast(BinaryIO, io.BufferedReader(_Remote(self.fs.open(path, "rb")), _BUFFER))

    def read(self, name: str, max_bytes: int) -> bytes | Fault:
        """The bytes of a file of at most `max_bytes`, or the fault that says why they are not given."""

        def fault(reason: str, detail: str, bad: bool) -> Fault:
            return Fault(reason=reason, detail=detail, bad=bad, file=name, where="file")

        try:
            with self.open(name) as f:
                data = f.read(max_bytes + 1)
        except OSError as e:
            return fault("unreadable file", f"cannot be opened: {_why(e)}", bad=True)
        if len(data) > max_bytes:
            return fault("file too large", f"more than {max_bytes:,} bytes, the limit of a file", bad=False)
        return data

    def picture(
        self, reference: str, bases: Sequence[str], file: str, where: str, alt: str | None = None
    ) -> Picture | Fault:
        """The image that `reference` names: a file in one of the folders `bases`, looked for in turn, or a
        data URI. `file` and `where` name the document that asks for it."""

        def fault(reason: str, detail: str, bad: bool = True) -> Fault:
            return Fault(reason=reason, detail=detail, bad=bad, file=file, where=where)

        shown = reference if len(reference) <= 120 else f"{reference[:117]}..."
        if reference.startswith("data:"):
            data = _embedded(reference, self.max_bytes)
            return fault(*data) if isinstance(data, tuple) else self.inline(data, None, file, where, alt)
        if (scheme := _scheme(reference)) is not None:
            if self.keep_remote and scheme in FETCHABLE:
                media = Media(
                    media_id=content_id(reference), url=reference, alt=alt or None, error=NOT_FETCHED
                )
                return Picture(media, None)
            return fault("remote image", f"'{shown}' is no local file; nothing is fetched from the network")
        try:
            paths = [self._inside(base, reference) for base in bases]
            with remote_errors():
                path = next((p for p in paths if p is not None and self._is_file(p)), None)
                if path is None and None in paths:
                    return fault("path leaves the source", f"'{shown}' lies outside the source's folder")
                if path is None:
                    return fault("missing image", f"no file '{shown}'")
                name = self._name(path)
                with self.open(name) as f:
                    data = f.read(self.max_bytes + 1)
        except ValueError:  # no name of a file: NUL, or a lone surrogate
            return fault("missing image", f"{shown!r} names no file")
        except OSError as e:
            return fault("unreadable image", f"{shown!r}: {_why(e)}")
        if len(data) > self.max_bytes:
            size = self.size(name)
            detail = f"'{shown}' has {size:,} bytes, images.max_bytes is {self.max_bytes:,}"
            return fault("image file too large", detail, bad=False)
        return _picture(data, name, alt)

    def inline(
        self, data: bytes, url: str | None, file: str, where: str, alt: str | None = None
    ) -> Picture | Fault:
        """A picture whose bytes stand in the document itself."""
        if len(data) > self.max_bytes:
            detail = f"{len(data):,} bytes, images.max_bytes is {self.max_bytes:,}"
            return Fault(reason="image file too large", detail=detail, bad=False, file=file, where=where)
        return _picture(data, url, alt)

    def _inside(self, *parts: str) -> str | None:
        """The parts below the root as a path of the file system; None where that leaves the root."""
        if any(p.startswith("/") for p in parts):
            return None
        if not self.is_local:  # the root is not touched: `normpath` would take a slash out of `http://`
            name = posixpath.normpath(posixpath.join(*parts)) if any(parts) else "."
            if name == ".." or name.startswith("../"):
                return None
            return self.root if name == "." else f"{self.root.rstrip('/')}/{name}"
        path = os.path.realpath(_named_by_bytes(posixpath.join(self.root, *parts)))
        return path if path == self.root or path.startswith(self.root.rstrip("/") + "/") else None

    def _opened(self, name: str) -> str:
        path = self._inside(name)
        if path is None:
            raise PermissionError(errno.EACCES, "lies outside the source's folder", name)
        if self.is_local and not os.path.isfile(path):  # a pipe or a device would never end
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        return path

    def _is_file(self, path: str) -> bool:
        return os.path.isfile(path) if self.is_local else bool(self.fs.isfile(path))

    def _name(self, path: str) -> str:
        return spelled(path[len(self.root) :].lstrip("/"))

    def _walk_local(self, top: str, deep: bool) -> Iterator[Stamp]:
        for directory, folders, names in os.walk(top, followlinks=False):
            if not deep:
                folders.clear()
            for name in names:
                path = os.path.join(directory, name)
                if os.path.isfile(path) and not os.path.islink(path):
                    yield _local_stamp(self._name(path), os.stat(path))

    def _find_remote(self, top: str, deep: bool) -> Iterator[Stamp]:
        try:
            with remote_errors():
                found = self.fs.find(top, maxdepth=None if deep else 1, detail=True)
        except FileNotFoundError:
            return
        for path, info in found.items():
            inside = path.startswith(self.root.rstrip("/") + "/") and ".." not in path.split("/")
            if inside and info.get("type") == "file":
                yield _remote_stamp(self._name(path), info)


@contextlib.contextmanager
def remote_errors() -> Iterator[None]:
    """Every storage library has errors of its own; here all of them are OSError."""
    try:
        yield
    except (OSError, ValueError, ImportError):
        raise
    except Exception as e:
        raise OSError(errno.EIO, f"{type(e).__name__}: {e}") from e


class _Remote(io.RawIOBase):
    """A file of fsspec whose failures are OSError, to be wrapped in a buffer."""

    def __init__(self, file: Any):
        super().__init__()
        self.file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            with remote_errors():
                data = self.file.read(len(buffer))
        except ValueError as e:  # fsspec's word for a server that gives a file from its beginning alone
            raise OSError(errno.EIO, _NO_RANGES if "range requests" in str(e) else str(e)) from None
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with remote_errors():
            return int(self.file.seek(offset, whence))

    def tell(self) -> int:
        return int(self.file.tell())

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()


def _embedded(reference: str, max_bytes: int) -> bytes | tuple[str, str, bool]:
    """The bytes of a data URI; or reason, detail and badness of a fault."""
    head = _DATA_URI.match(reference)
    if head is None:
        return "unreadable image", f"no base64 picture: {reference[:40]!r}", True
    if (size := (len(reference) - head.end()) * 3 // 4) > max_bytes:
        return (
            "image file too large",
            f"a data URI of {size:,} bytes, images.max_bytes is {max_bytes:,}",
            False,
        )
    try:
        return base64.b64decode(reference[head.end() :], validate=True)
    except ValueError as e:
        return "unreadable image", f"a data URI that is no base64: {e}", True


def _picture(data: bytes, name: str | None, alt: str | None) -> Picture:
    return Picture(Media(media_id=content_id(data), nbytes=len(data), url=name, alt=alt or None), data)


def spelled(name: str) -> str:
    """A file's name as text: its bytes that are no UTF-8 are written out, as in `caf\\xe9.html`."""
    return (
        name
        if name.isascii()
        else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    )


def _named_by_bytes(path: str) -> str:
    """The path that `spelled` wrote out, unless something is really called so."""
    if "\\x" not in path or os.path.lexists(path):
        return path
    return os.fsdecode(_SPELLED.sub(lambda m: bytes((int(m.group(1), 16),)), os.fsencode(path)))


def _scheme(reference: str) -> str | None:
    """The scheme of an address, "" where it has none (`//host/x`) or is broken; None of a file's name."""
    try:
        scheme = urlsplit(reference).scheme
    except ValueError:  # looks like an address, and is not even that
        return ""
    return scheme or ("" if reference.startswith("//") else None)


def _local_stamp(name: str, stat: os.stat_result) -> Stamp:
    return Stamp(name, stat.st_size, str(stat.st_mtime_ns))


def _remote_stamp(name: str, info: dict[str, Any]) -> Stamp:
    keys = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "created")
    version = next((info[k] for k in keys if info.get(k)), "")
    if hasattr(version, "timestamp"):  # one file system gives a date here and a number there
        version = version.timestamp()
    return Stamp(name, int(info.get("size") or 0), str(version))


def _why(error: OSError) -> str:
    return error.strerror or str(error)
