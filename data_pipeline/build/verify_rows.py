"""Every row of a shard, side by side with its tar and its Parquet: sound, decodable, and nowhere else."""

import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.build.images.check import Refusal, inspect
from data_pipeline.build.images.limits import ImageLimits
from data_pipeline.build.write.shard import SUFFIXES
from data_pipeline.build.write.tar import index_path, members, pack_index
from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest, Shard
from data_pipeline.sample import SCHEMA, Sample
from data_pipeline.view import record_batches

# What may be in a dataset was judged when it was built; here an image only has to decode.
_DECODES = ImageLimits(max_pixels=89_478_485, max_bytes=2**31, max_memory=2**34)


class Seen:
    """The ids and pictures met so far, in a temporary database: memory stays bounded for any dataset."""

    def __init__(self) -> None:
        self.twice = 0
        self.example = ""
        self.db = sqlite3.connect("", isolation_level=None)  # a nameless file, gone when closed

    def __enter__(self) -> "Seen":
        self.db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
            "CREATE TABLE ids (id TEXT PRIMARY KEY) WITHOUT ROWID;"
            "CREATE TABLE images (id TEXT PRIMARY KEY, split TEXT) WITHOUT ROWID;"
            "BEGIN"
        )
        return self

    def __exit__(self, *exception: Any) -> None:
        self.db.close()

    def sample(self, id: str) -> None:
        if self.db.execute("INSERT OR IGNORE INTO ids VALUES (?)", (id,)).rowcount == 0:
            self.twice += 1
            self.example = self.example or id

    def image_is_on_one_side(self, media_id: str, split: str) -> bool:
        if self.db.execute("INSERT OR IGNORE INTO images VALUES (?, ?)", (media_id, split)).rowcount:
            return True
        found = self.db.execute("SELECT split FROM images WHERE id = ?", (media_id,)).fetchone()
        return found == (split,)


def row_faults(
    directory: Path,
    manifest: Manifest,
    shard: Shard,
    seen: Seen,
    broken: set[str],
    each: Callable[[dict[str, Any], Shard], Iterator[str]],
) -> Iterator[str]:
    """Faults of an Arrow shard and of those in other formats beside it, but for `broken` ones.

    `each` is asked for the faults that it finds in a row.
    """
    samples = images = chars = 0
    try:
        twins = list(_twins(directory, manifest, shard, broken))
        for batch in record_batches(directory, shard):
            if not batch.schema.equals(SCHEMA, check_metadata=True):
                yield f"{shard.path}: its schema is not the schema of samples"
                return
            batch.validate(full=True)
            for row in batch.to_pylist():
                seen.sample(row["id"])
                samples += 1
                images += len(row["media"])
                chars += sum(len(s["text"] or "") for s in row["segments"])
                yield from _row(row, shard, seen)
                yield from each(row, shard)
                for twin in twins:
                    yield from twin.compare(row)
        for twin in twins:
            yield from twin.end()
    except (DataError, pa.ArrowException, tarfile.TarError, OSError, ValueError) as e:
        yield f"{shard.path}: not readable: {e}"
        return
    if (samples, images, chars) != (shard.samples, shard.images, shard.text_chars):
        yield (
            f"{shard.path}: holds {samples} samples, {images} images, {chars} characters; "
            f"the manifest says {shard.samples}, {shard.images}, {shard.text_chars}"
        )


def _row(row: dict[str, Any], shard: Shard, seen: Seen) -> Iterator[str]:
    place = f"{shard.path}: sample {row['id']}"
    try:
        sample = Sample.from_row(row)
    except (ValueError, TypeError) as e:
        yield f"{place}: {e}"
        return
    if sample.source != shard.source:
        yield f"{place}: is of source {sample.source}"
    for media, data in zip(sample.media, sample.image_bytes, strict=True):
        if not seen.image_is_on_one_side(media.media_id, shard.split):
            yield f"{place}: image {media.media_id} is both in train and in heldout"
        if data is None:
            continue
        found = inspect(data, _DECODES, page=True)
        if isinstance(found, Refusal):
            yield f"{place}: image {media.media_id}: {found.detail}"
        elif (found.mime, found.width, found.height) != (media.mime, media.width, media.height):
            yield f"{place}: image {media.media_id} is not what its record says"


def _twins(
    directory: Path, manifest: Manifest, shard: Shard, broken: set[str]
) -> Iterator["_Tar | _Parquet"]:
    stem = shard.path.removesuffix(".arrow")
    for format, kind in (("webdataset", _Tar), ("parquet", _Parquet)):
        path = f"{stem}.{SUFFIXES[format]}"
        twin = next((s for s in manifest.shards(format=format) if s.path == path), None)
        if twin is not None and path not in broken:
            yield kind(directory, twin)


class _Tar:
    """A tar read side by side with the Arrow shard: the same samples, the same bytes, in the same order."""

    def __init__(self, directory: Path, shard: Shard):
        self.path = directory / shard.path
        self.name = shard.path
        self.tar = tarfile.open(self.path, "r:", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self.offsets: list[int] = []
        self.ends = 0
        self.differs = False

    def compare(self, row: dict[str, Any]) -> Iterator[str]:
        if self.differs:
            return
        for k, (name, data) in enumerate(members(row)):
            info = self.tar.next()
            if k == 0:
                self.offsets.append(-1 if info is None else info.offset)
            file = self.tar.extractfile(info) if info is not None and info.isreg() else None
            if info is None or file is None or info.name != name or file.read() != data:
                self.differs = True
                found = "ends" if info is None else f"holds {info.name!r}"
                yield f"{self.name}: differs from the Arrow shard: {found} where {name} belongs"
                return
            self.ends = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        self.tar.members = []  # type: ignore[attr-defined]  # its hints leave it out; it keeps every header otherwise

    def end(self) -> Iterator[str]:
        with self.tar:
            if self.differs:
                return
            if (more := self.tar.next()) is not None:
                yield f"{self.name}: holds {more.name!r}, which the Arrow shard does not"
        index = index_path(self.path)
        if not index.exists() or index.read_bytes() != pack_index([*self.offsets, self.ends]):
            yield f"{self.name}.idx: not the offsets of the samples in the tar"


class _Parquet:
    """A Parquet file read side by side with the Arrow shard, row for row."""

    def __init__(self, directory: Path, shard: Shard):
        self.name = shard.path
        self.file = pq.ParquetFile(directory / shard.path)
        schema = self.file.schema_arrow  # its fields carry numbers of Parquet's own as metadata
        self.other_schema = not schema.equals(SCHEMA) or schema.metadata != SCHEMA.metadata
        self.differs = self.other_schema
        self.rows = (row for b in self.file.iter_batches(batch_size=32) for row in b.to_pylist())

    def compare(self, row: dict[str, Any]) -> Iterator[str]:
        if self.differs:
            return
        found = next(self.rows, None)
        if found is None or found != row:
            self.differs = True
            yield f"{self.name}: differs from the Arrow shard at sample {row['id']}"

    def end(self) -> Iterator[str]:
        with self.file:
            if self.other_schema:
                yield f"{self.name}: its schema is not the schema of samples"
            elif not self.differs and next(self.rows, None) is not None:
                yield f"{self.name}: holds more samples than the Arrow shard"
