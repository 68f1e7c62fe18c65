"""One source of a dataset, read at random from memory-mapped Arrow shards."""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.errors import ConfigError, DataError, nearest
from data_pipeline.manifest import Manifest, Shard, check_shard
from data_pipeline.sample import SCHEMA, Media, Sample, Segment
from data_pipeline.view import View

_SEGMENT_FIELDS = ("type", "text", "media", "role", "turn", "loss")


@dataclass(frozen=True, eq=False)
class Source:
    """The samples of one (source, split): `len(source)`, `source[i]`. The order is that of the manifest."""

    name: str
    split: str
    _batches: tuple[pa.RecordBatch, ...]
    _ends: tuple[int, ...]  # rows up to and with batch b
    _view: View
    _rows: np.ndarray | None  # int64[samples]: the row of each sample; None where no row is excluded

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
        ends = tuple(accumulate(b.num_rows for b in batches))
        view = View.open(directory, manifest)
        rows = None
        if view.samples:
            starts = (0, *ends)
            kept = [start + view.kept_rows(b.column("id")) for start, b in zip(starts, batches, strict=False)]
            rows = np.concatenate(kept)
        if rows is not None and not len(rows):
            raise ConfigError(
                f"dataset '{manifest.name}' at {directory}: every sample of source '{name}' in split "
                f"'{split}' is excluded.\n  See which steps took them:  fovea data stats " + str(directory)
            )
        return cls(name, split, tuple(batches), ends, view, rows)

    def __len__(self) -> int:
        return self._ends[-1] if self._rows is None else len(self._rows)

    def __getitem__(self, i: int) -> Sample:
        """Sample i, pictures and all."""
        batch, row = self._find(i)
        sample = self._view.apply(Sample.from_row(batch.slice(row, 1).to_pylist()[0]))
        assert sample is not None, "rows that are excluded have no number"
        return sample

    def without_pixels(self, i: int) -> Sample:
        """Sample i as far as planning needs it: id, kind, segments, whether a picture is missing.

        Reads no image bytes, and of the segments only what the token layout depends on.
        """
        batch, row = self._find(i)
        cell = {name: batch.column(name)[row] for name in ("id", "kind", "segments", "media")}
        errors = _column(cell["media"].values, "error")
        keys = _column(cell["media"].values, "media_id") if self._view.images else [""] * len(errors)
        sample = Sample(
            id=cell["id"].as_py(),
            kind=cell["kind"].as_py(),
            source=self.name,
            segments=tuple(
                Segment(**dict(zip(_SEGMENT_FIELDS, values, strict=True)))
                for values in zip(
                    *(_column(cell["segments"].values, f) for f in _SEGMENT_FIELDS), strict=True
                )
            ),
            media=tuple(Media(media_id=k, error=e) for k, e in zip(keys, errors, strict=True)),
            image_bytes=(None,) * len(errors),
        )
        seen = self._view.apply(sample)
        assert seen is not None, "rows that are excluded have no number"
        return seen

    def picture(self, i: int, media: int) -> bytes | None:
        """The encoded bytes of one picture of sample i; None where the dataset holds none."""
        batch, row = self._find(i)
        images = batch.column("images")[row]
        return images[media]["bytes"].as_py() if images.is_valid and media < len(images) else None

    def _find(self, i: int) -> tuple[pa.RecordBatch, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"source '{self.name}' has {len(self)} samples, {i} is asked for")
        row = i if self._rows is None else int(self._rows[i])
        b = bisect_right(self._ends, row)
        return self._batches[b], row - (self._ends[b - 1] if b else 0)


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
