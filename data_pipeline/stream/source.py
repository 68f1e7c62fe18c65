"""One source of a dataset, read at random by sample number: from Arrow, WebDataset or Parquet shards, local
or remote. Opening looks at the manifest alone; a shard is proven when it is first read."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from data_pipeline.errors import ConfigError, DataError, nearest
from data_pipeline.manifest import Manifest, Shard
from data_pipeline.sample import Sample
from data_pipeline.stream import hidden
from data_pipeline.stream.contents import view_at
from data_pipeline.stream.faults import BrokenSample
from data_pipeline.stream.place import Place
from data_pipeline.stream.shards.opened import Reader, Shards, check_size
from data_pipeline.view import View

T = TypeVar("T")
# Of several formats with the same samples. A map costs nothing; over a network a tar gives one sample in one
# request, Parquet a row group, Arrow a record batch that is found by a request for each batch of the shard.
LOCAL_FORMATS = ("arrow", "webdataset", "parquet")
REMOTE_FORMATS = ("webdataset", "parquet", "arrow")
# What reading a row raises where the row is not what it should be. A file that cannot be read is a DataError.
_ROW_ERRORS = (ValueError, TypeError, LookupError, AttributeError, RecursionError, OSError)


class Head(NamedTuple):
    """What names a sample: enough to look it up where it came from."""

    id: str
    source: str
    url: str | None


@dataclass(eq=False)
class Source:
    """The samples of one (source, split): `len(source)`, `source[i]`. The order is that of the manifest.

    `digest` identifies what it shows, whatever else the dataset holds and in whichever format it is read.
    A row that is no sample raises BrokenSample (`faults.py`); a shard that is broken, DataError naming it.
    Picklable without open files: another process opens what it reads.
    """

    name: str
    split: str
    format: str
    digest: str
    _place: Place
    _shards: tuple[Shard, ...]
    _ends: tuple[int, ...]  # rows up to and with shard s
    _indices: tuple[str | None, ...]  # sha256 of the index beside shard s
    _view: View
    _hidden: int  # how many rows are not seen
    _opened: Shards
    _before: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def open(
        cls,
        directory: Path | str | Place,
        manifest: Manifest,
        name: str,
        split: str = "train",
        *,
        format: str | None = None,
        shards: Shards | None = None,
        view: View | None = None,
    ) -> "Source":
        """The source of the dataset at a local path or a URL. No shard is read; the sizes of local ones are.

        `format`: arrow | webdataset | parquet; None takes the quickest of those that hold all samples.
        `shards` and `view` (of this manifest) may be shared between sources.
        Raises ConfigError where the dataset has no such source, DataError naming a file that is missing or of
        another size.
        """
        place = directory if isinstance(directory, Place) else Place.at(directory)
        format = _format(place, manifest, name, split, format)
        chosen = tuple(s for s in manifest.shards(format=format, split=split, source=name) if s.samples)
        for shard in chosen:
            check_size(place, shard)
        files = {path: sha256 for task in manifest.tasks for path, sha256 in task.files.items()}
        source = cls(
            name,
            split,
            format,
            _digest(manifest, name, split),
            place,
            chosen,
            tuple(accumulate(s.samples for s in chosen)),
            tuple(files.get(f"{s.path}.idx") for s in chosen),
            view_at(place, manifest) if view is None else view,
            manifest.excluded(name, split, "samples"),
            shards or Shards(),
        )
        if not len(source):
            raise ConfigError(
                f"dataset '{manifest.name}' at {place}: every sample of source '{name}' in split "
                f"'{split}' is excluded.\n  See which steps took them:  fovea data stats {place}"
            )
        return source

    def __len__(self) -> int:
        return self._ends[-1] - self._hidden

    def __getitem__(self, i: int) -> Sample:
        """Sample i, pictures and all."""
        return self._seen(self._read(i, lambda reader, row: reader.sample(row)))

    def without_pixels(self, i: int) -> Sample:
        """Sample i as far as planning needs it: id, kind, source, segments; of its media the size and whether
        the picture is missing. Reads no image bytes; what tokens do not depend on may be left out.
        """
        return self._seen(self._read(i, lambda reader, row: reader.light(row)))

    def picture(self, i: int, media: int) -> bytes | None:
        """The encoded bytes of one picture of sample i; None where the dataset holds none."""
        return self._read(i, lambda reader, row: reader.picture(row, media))

    def head(self, i: int) -> Head:
        """What names sample i. Reads those columns alone."""
        return Head(*self._read(i, lambda reader, row: reader.head(row)))

    def place(self, i: int) -> tuple[str, int]:
        """(path of the shard in its dataset, row in it, from 0) of sample i."""
        s, row = self._find(i)
        return self._shards[s].path, row

    def __getstate__(self) -> dict[str, Any]:
        # With the hidden rows found, so that no worker looks for them again nor carries their ids.
        self._find(0)
        return {**vars(self), "_view": View(images=self._view.images)}

    def _seen(self, sample: Sample) -> Sample:
        if not self._view.images:
            return sample  # a row that is excluded has no number
        seen = self._view.apply(sample)
        assert seen is not None, "rows that are excluded have no number"
        return seen

    def _read(self, i: int, read: Callable[[Reader, int], T]) -> T:
        s, row = self._find(i)
        reader = self._reader(s)
        try:
            return read(reader, row)
        except _ROW_ERRORS as e:
            raise BrokenSample("row cannot be decoded", f"{type(e).__name__}: {e}") from None

    def _reader(self, s: int) -> Reader:
        return self._opened.reader(self._place, self._shards[s], self._indices[s])

    def _find(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"source '{self.name}' has {len(self)} samples, {i} is asked for")
        if self._hidden:
            if self._before is None:
                self._before = hidden.before(self._hidden_rows())
            i = hidden.row_of(i, self._before)
        s = bisect_right(self._ends, i)
        return s, i - (self._ends[s - 1] if s else 0)

    def _ids(self, s: int) -> list[str]:
        try:
            return list(self._reader(s).ids())
        except _ROW_ERRORS as e:
            shard = self._place.name(self._shards[s].path)
            raise DataError(f"the ids of shard {shard} cannot be read: {e}\n  Copy it again.") from None

    def _hidden_rows(self) -> np.ndarray:
        """int64[hidden]. Raises DataError where they are not as many as the manifest says."""
        directory, path = self._opened.proofs.directory, None
        if directory is not None:
            identity = [self.digest, self.format]
            path, rows = hidden.remembered(directory, identity)
            if rows is not None and len(rows) == self._hidden:
                return rows
        rows = hidden.find((self._ids(s) for s in range(len(self._shards))), self._view)
        if len(rows) != self._hidden:
            raise DataError(
                f"dataset {self._place}: {len(rows):,} samples of source '{self.name}' in split "
                f"'{self.split}' are excluded, the manifest says {self._hidden:,}.\n"
                f"  Prove the dataset:  fovea data verify {self._place}"
            )
        if path is not None:
            hidden.remember(path, rows)
        return rows


def _digest(manifest: Manifest, name: str, split: str) -> str:
    shards = [(s.path, s.sha256) for s in manifest.shards(split=split, source=name)]
    hiding = [e.sha256 for e in manifest.exclusions if split in e.counts.get(name, {})]
    return hashlib.sha256(json.dumps([name, split, shards, hiding]).encode()).hexdigest()[:32]


def _format(place: Place, manifest: Manifest, name: str, split: str, wanted: str | None) -> str:
    """The format to read, which holds every sample. Raises ConfigError where there is none."""
    held: dict[str, dict[str, int]] = {}  # samples by source, then by format
    for s in manifest.shards(split=split):
        of_source = held.setdefault(s.source, {})
        of_source[s.format] = of_source.get(s.format, 0) + s.samples
    most = {source: max(formats.values()) for source, formats in held.items()}
    if not most.get(name):
        listed = ", ".join(f"{source} ({samples:,})" for source, samples in most.items()) or "nothing"
        raise ConfigError(
            f"dataset '{manifest.name}' at {place} has no source '{name}' in split '{split}'"
            f"{nearest(name, most)}\n  It has: {listed}"
        )
    preferred = LOCAL_FORMATS if place.local else REMOTE_FORMATS
    full = [f for f in preferred if held[name].get(f) == most[name]]
    if wanted is None and full:
        return full[0]
    if wanted not in full:
        raise ConfigError(
            f"dataset '{manifest.name}' at {place} holds source '{name}' in split '{split}' "
            f"as {' or '.join(full) or 'nothing that this release reads'}, not as '{wanted}'"
        )
    return wanted
