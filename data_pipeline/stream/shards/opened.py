"""The shards that a process holds open: proven when they are first opened, a bounded number at a time."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from data_pipeline.errors import DataError
from data_pipeline.manifest import Shard, check_shard
from data_pipeline.sample import Sample
from data_pipeline.stream.place import File, Place, RemoteFile
from data_pipeline.stream.shards.arrow import ArrowShard, layout
from data_pipeline.stream.shards.lru import Lru
from data_pipeline.stream.shards.parquet import ParquetShard
from data_pipeline.stream.shards.proofs import Proofs
from data_pipeline.stream.shards.tar import TarShard

MAX_OPEN = 256
CACHE_BYTES = 64 * 2**20
_AT_ONCE = 8 * 2**20


class Reader(Protocol):
    """One shard. A row that is not what it should be raises ValueError, TypeError or the like."""

    def sample(self, n: int) -> Sample:
        """Row n, pictures and all."""
        ...

    def light(self, n: int) -> Sample:
        """Row n as far as planning needs it; no image bytes."""
        ...

    def picture(self, n: int, media: int) -> bytes | None: ...

    def head(self, n: int) -> tuple[str, str, str | None]:
        """id, source and url of row n."""
        ...

    def ids(self) -> Iterable[str]: ...


class Shards:
    """Readers by shard, for all sources of a process.

    A local shard is proven when it is first opened: size, sha256, schema, count, every offset; with `proofs`
    (a directory of this machine) once for all its processes. Of a remote one the size is, and what is read of
    it is validated as it comes; `remote_digests` also reads it through once for its sha256. Beyond `max_open`
    shards and `cache_bytes` of decoded row groups, remote batches and tar samples the oldest are let go.
    A pickle carries the settings alone; so does a forked process, which opens its own files.
    """

    def __init__(
        self,
        proofs: Path | None = None,
        *,
        max_open: int = MAX_OPEN,
        cache_bytes: int = CACHE_BYTES,
        remote_digests: bool = False,
    ) -> None:
        self._settings = (proofs, max_open, cache_bytes, remote_digests)
        self._remote_digests = remote_digests
        self.proofs = Proofs(proofs)
        self._begin()

    def reader(self, place: Place, shard: Shard, index_sha256: str | None = None) -> Reader:
        """The open shard. `index_sha256`: of the index beside a tar, where the manifest records it.

        Raises DataError naming the file that is missing, truncated, altered or no shard.
        """
        if os.getpid() != self._pid:
            self._begin()
        reader: Reader = self._open.get(
            (place, shard.path), lambda: self._opened(place, shard, index_sha256), lambda _: 1
        )
        return reader

    def _begin(self) -> None:
        _, max_open, cache_bytes, _ = self._settings
        self._pid = os.getpid()
        self._open, self._cache = Lru(max_open), Lru(cache_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, self._settings

    def _opened(self, place: Place, shard: Shard, index_sha256: str | None) -> Reader:
        check_size(place, shard)
        file = place.open(shard.path)
        if file.size != shard.nbytes:
            raise DataError(f"shard {file.name} has {file.size:,} bytes, the manifest says {shard.nbytes:,}")
        match shard.format:
            case "arrow":
                ends, offsets = self._proven(place, shard, file, lambda: layout(file, shard.samples))
                return ArrowShard(file, ends, offsets, self._cache)
            case "parquet":
                self._proven(place, shard, file, lambda: None)
                return ParquetShard(file, shard.samples, self._cache)
            case "webdataset":
                index = _index(place, shard, index_sha256)
                tar = TarShard(file, index, shard.samples, self._cache)
                stamp = hashlib.sha256(index).hexdigest()
                self._proven(place, shard, file, lambda: tar.prove() if file.local else None, stamp)
                return tar
        raise DataError(f"shard {file.name}: this release reads no format '{shard.format}'")

    def _proven(self, place: Place, shard: Shard, file: File, examine: Any, *of: str) -> Any:
        """What `examine` finds in a shard whose digest is right; both are looked at once for its identity."""

        def prove() -> Any:
            if place.local is not None:
                check_shard(place.local, shard)
            elif self._remote_digests:
                _check_digest(file, shard)
            return examine()

        return self.proofs.once([*_identity(file), shard.sha256, shard.format, *of], prove)


def _again(proofs: Path | None, max_open: int, cache_bytes: int, remote_digests: bool) -> Shards:
    return Shards(proofs, max_open=max_open, cache_bytes=cache_bytes, remote_digests=remote_digests)


def check_size(place: Place, shard: Shard) -> None:
    """Raise DataError where a local shard is missing or of another size; no byte of it is read."""
    if (directory := place.local) is None:
        return
    try:
        size = os.stat(place.name(shard.path)).st_size
    except OSError:
        size = -1
    if size != shard.nbytes:
        check_shard(directory, shard)


def _index(place: Place, shard: Shard, sha256: str | None) -> bytes:
    path = f"{shard.path}.idx"
    try:
        index = place.read(path)
    except DataError as e:
        raise DataError(
            f"{e}: the index of a tar is needed to read it at random.\n"
            "  Copy it again, or delete the tar and repeat the build command: only its task is redone."
        ) from None
    if sha256 is not None and (found := hashlib.sha256(index).hexdigest()) != sha256:
        raise DataError(
            f"{place.name(path)} was altered: sha256 is {found}, the manifest says {sha256}.\n"
            "  Copy it again, or delete it and its tar and repeat the build command."
        )
    return index


def _check_digest(file: File, shard: Shard) -> None:
    digest = hashlib.sha256()
    for at in range(0, file.size, _AT_ONCE):
        digest.update(file.read_at(at, min(_AT_ONCE, file.size - at)))
    if (found := digest.hexdigest()) != shard.sha256:
        raise DataError(
            f"shard {file.name} was altered: sha256 is {found}, the manifest says {shard.sha256}.\n"
            "  Copy the shard again."
        )


def _identity(file: File) -> list[Any]:
    """What changes when the file does. ctime too: whoever restores an old mtime cannot restore that."""
    if isinstance(file, RemoteFile):
        return [file.name, file.size, file.stamp]
    stat = os.stat(file.name)
    return [file.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
