"""One source of a dataset, read at random from memory-mapped Arrow shards."""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline.errors import ConfigError, DataError, nearest
from data_pipeline.manifest import Manifest, Shard, check_shard
from data_pipeline.sample import SCHEMA, Media, Sample, Segment

_SEGMENT_FIELDS = ("type", "text", "media", "role", "turn", "loss")


@dataclass(frozen=True, eq=False)
class Source:
    """The samples of one (source, split): `len(source)`, `source[i]`. The order is that of the manifest."""

    name: str
    split: str
    _batches: tuple[pa.RecordBatch, ...]
    _ends: tuple[int, ...]  # samples up to and with batch b

    @classmethod
    def open(cls, directory: Path | str, manifest: Manifest, name: str, split: str = "train") -> "Source":
        """Map the source's shards, each proven whole first: size, sha256, schema, every offset.

        Raises ConfigError where the dataset has no such source, DataError naming the file that is broken.
        """
        directory = Path(directory)
        shards = manifest.shards(format="arrow", split=split, source=name)
        if not sum(s.samples for s in shards):
            has: dict[str, int] = {}
            for s in manifest.shards(format="arrow", split=split):
                has[s.source] = has.get(s.source, 0) + s.samples
            listed = ", ".join(f"{source} ({samples:,})" for source, samples in has.items()) or "nothing"
            raise ConfigError(
                f"dataset '{manifest.name}' at {directory} has no source '{name}' in split '{split}'"
                f"{nearest(name, has)}\n  It has: {listed}"
            )
        batches = [b for shard in shards for b in _read(directory, shard) if b.num_rows]
        return cls(name, split, tuple(batches), tuple(accumulate(b.num_rows for b in batches)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> Sample:
        """Sample i, pictures and all."""
        batch, row = self._find(i)
        return Sample.from_row(batch.slice(row, 1).to_pylist()[0])

    def without_pixels(self, i: int) -> Sample:
        """Sample i as far as planning needs it: id, kind, segments, whether a picture is missing.

        Reads no image bytes, and of the segments only what the token layout depends on.
        """
        batch, row = self._find(i)
        cell = {name: batch.column(name)[row] for name in ("id", "kind", "segments", "media")}
        errors = _column(cell["media"].values, "error")
        return Sample(
            id=cell["id"].as_py(),
            kind=cell["kind"].as_py(),
            source=self.name,
            segments=tuple(
                Segment(**dict(zip(_SEGMENT_FIELDS, values, strict=True)))
                for values in zip(
                    *(_column(cell["segments"].values, f) for f in _SEGMENT_FIELDS), strict=True
                )
            ),
            media=tuple(Media(media_id="", error=e) for e in errors),
            image_bytes=(None,) * len(errors),
        )

    def picture(self, i: int, media: int) -> bytes | None:
        """The encoded bytes of one picture of sample i; None where the dataset holds none."""
        batch, row = self._find(i)
        images = batch.column("images")[row]
        return images[media]["bytes"].as_py() if images.is_valid and media < len(images) else None

    def _find(self, i: int) -> tuple[pa.RecordBatch, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"source '{self.name}' has {len(self)} samples, {i} is asked for")
        b = bisect_right(self._ends, i)
        return self._batches[b], i - (self._ends[b - 1] if b else 0)


def _column(structs: pa.StructArray | None, name: str) -> list[Any]:
    """One field of a row's list of structs: several times faster than `as_py` on the whole."""
    return [] if structs is None else structs.field(name).to_pylist()


def _read(directory: Path, shard: Shard) -> list[pa.RecordBatch]:
    check_shard(directory, shard)
    path = directory / shard.path
    fix = "Build the dataset again, or restore this shard from a copy."
    try:
        batches = _record_batches(path)
        for batch in batches:
            if not batch.schema.equals(SCHEMA):
                raise DataError(f"shard {path} does not have the schema of a sample.\n  {fix}")
            batch.validate(full=True)
    except (pa.ArrowInvalid, OSError) as e:
        raise DataError(f"shard {path} cannot be read: {e}\n  {fix}") from None
    if (found := sum(b.num_rows for b in batches)) != shard.samples:
        raise DataError(f"shard {path} holds {found} samples, the manifest says {shard.samples}.\n  {fix}")
    return batches


def _record_batches(path: Path) -> list[pa.RecordBatch]:
    """The file's batches, mapped and not copied; both IPC layouts, as `datasets` writes the streaming one."""
    mapped = pa.memory_map(str(path))
    if mapped.read(6) == b"ARROW1":
        reader = pa.ipc.open_file(mapped)
        return [reader.get_batch(b) for b in range(reader.num_record_batches)]
    mapped.seek(0)
    return list(pa.ipc.open_stream(mapped))
