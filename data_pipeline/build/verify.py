"""Prove a dataset: every byte, row, image and count that its manifest claims. All faults are listed."""

import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline.build.images.check import Refusal, inspect
from data_pipeline.build.recipe import ImageLimits
from data_pipeline.build.write.tar import index_path, members, pack_index
from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest, Shard, check_shard, read_manifest
from data_pipeline.sample import SCHEMA, Sample

_SHOWN = 20


@dataclass(frozen=True)
class Verified:
    """What was proved, for one line of summary."""

    samples: int
    images: int
    shards: int
    nbytes: int


def verify(directory: Path) -> Verified:
    """Read all of the dataset. Raises DataError with every fault."""
    manifest = read_manifest(directory)
    faults = list(_faults(directory, manifest))
    if faults:
        shown = [f"  {f}" for f in faults[:_SHOWN]]
        if len(faults) > _SHOWN:
            shown.append(f"  ... and {len(faults) - _SHOWN} more")
        raise DataError(f"{directory}: {len(faults)} fault(s)\n" + "\n".join(shown))
    arrow = manifest.shards(format="arrow")
    return Verified(
        samples=sum(s.samples for s in arrow),
        images=sum(s.images for s in arrow),
        shards=len(manifest.shards()),
        nbytes=sum(s.nbytes for s in manifest.shards()),
    )


def _faults(directory: Path, manifest: Manifest) -> Iterator[str]:
    yield from _books(directory, manifest)
    limits = ImageLimits.model_validate(manifest.recipe.get("images", {}))
    side_of: dict[str, str] = {}
    ids: Counter[str] = Counter()
    for shard in manifest.shards(format="arrow"):
        try:
            check_shard(directory, shard)
            yield from _rows(directory, manifest, shard, limits, side_of, ids)
        except (DataError, pa.ArrowException, tarfile.TarError, OSError, ValueError) as e:
            yield str(e) if isinstance(e, DataError) else f"{shard.path}: not readable: {e}"
    if twice := [i for i, n in ids.items() if n > 1]:
        yield f"{len(twice)} sample id(s) come more than once, for instance {twice[0]}"


def _rows(
    directory: Path,
    manifest: Manifest,
    shard: Shard,
    limits: ImageLimits,
    side_of: dict[str, str],
    ids: Counter[str],
) -> Iterator[str]:
    """Every row of an Arrow shard, side by side with its tar where there is one."""
    samples = images = chars = 0
    with pa.memory_map(str(directory / shard.path)) as source:
        reader = pa.ipc.open_file(source)
        if not reader.schema.equals(SCHEMA, check_metadata=True):
            yield f"{shard.path}: its schema is not the schema of samples"
            return
        tar = _open_tar(directory, manifest, shard)
        for i in range(reader.num_record_batches):
            batch = reader.get_batch(i)
            batch.validate(full=True)
            for row in batch.to_pylist():
                ids[row["id"]] += 1
                samples += 1
                images += len(row["media"])
                chars += sum(len(s["text"] or "") for s in row["segments"])
                yield from _row(row, shard, limits, side_of)
                if tar is not None:
                    yield from tar.compare(row)
        if tar is not None:
            yield from tar.end()
    if (samples, images, chars) != (shard.samples, shard.images, shard.text_chars):
        yield (
            f"{shard.path}: holds {samples} samples, {images} images, {chars} characters; "
            f"the manifest says {shard.samples}, {shard.images}, {shard.text_chars}"
        )


def _books(directory: Path, manifest: Manifest) -> Iterator[str]:
    """The funnel balances, and written samples are the samples of the shards."""
    held = Counter[str]()
    for shard in manifest.shards(format="arrow"):
        held[shard.source] += shard.samples
    for source, funnel in manifest.funnel.items():
        if not funnel.balanced:
            yield f"source {source}: {funnel.read} read, {funnel.written} written, dropped {funnel.dropped}"
        if funnel.written != held[source]:
            yield f"source {source}: {funnel.written} written, but its shards hold {held[source]}"
    listed = {s.path for s in manifest.shards()}
    for path in sorted((directory / "shards").glob("*")):
        name = path.relative_to(directory).as_posix()
        if name.removesuffix(".idx") not in listed:
            yield f"{name}: in the directory, but not in the manifest"


def _row(row: dict[str, Any], shard: Shard, limits: ImageLimits, side_of: dict[str, str]) -> Iterator[str]:
    place = f"{shard.path}: sample {row['id']}"
    try:
        sample = Sample.from_row(row)
    except (ValueError, TypeError) as e:
        yield f"{place}: {e}"
        return
    if sample.source != shard.source:
        yield f"{place}: is of source {sample.source}"
    for media, data in zip(sample.media, sample.image_bytes, strict=True):
        if side_of.setdefault(media.media_id, shard.split) != shard.split:
            yield f"{place}: image {media.media_id} is both in train and in heldout"
        if data is None:
            continue
        found = inspect(data, limits, page=media.kind == "page")
        if isinstance(found, Refusal):
            yield f"{place}: image {media.media_id}: {found.detail}"
        elif (found.mime, found.width, found.height) != (media.mime, media.width, media.height):
            yield f"{place}: image {media.media_id} is not what its record says"


def _open_tar(directory: Path, manifest: Manifest, shard: Shard) -> "_Tar | None":
    path = f"{shard.path.removesuffix('.arrow')}.tar"
    tar = next((s for s in manifest.shards(format="webdataset") if s.path == path), None)
    if tar is None:
        return None
    check_shard(directory, tar)
    return _Tar(directory, tar)


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
        self.tar.members = []  # tarfile keeps every header otherwise

    def end(self) -> Iterator[str]:
        with self.tar:
            if self.differs:
                return
            if (more := self.tar.next()) is not None:
                yield f"{self.name}: holds {more.name!r}, which the Arrow shard does not"
        index = index_path(self.path)
        if not index.exists() or index.read_bytes() != pack_index([*self.offsets, self.ends]):
            yield f"{self.name}.idx: not the offsets of the samples in the tar"
