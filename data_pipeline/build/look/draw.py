"""Samples to look at, from places in the shards: at random or by id, without reading the rest."""

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.errors import DataError
from data_pipeline.manifest import Shard
from data_pipeline.view import View, record_batches

Place = tuple[Shard, int]  # a shard, and the number of a row in it


def seen_places(
    directory: Path, shards: Sequence[Shard], view: View, *, most: int, seed: str
) -> dict[str, list[Place]]:
    """{source: places}, in random order, of samples that the view shows.

    At most `4 * most + 100` rows of a source are tried, so a source that is almost all excluded may give
    fewer than there are.
    """
    found: dict[str, list[Place]] = {}
    for source in sorted({s.source for s in shards}):
        mine = [s for s in shards if s.source == source]
        ends = np.cumsum([s.samples for s in mine])
        rng = random.Random(f"{seed}:{source}")
        rows = rng.sample(range(int(ends[-1])), min(int(ends[-1]), 4 * most + 100))
        places = [_place(mine, ends, row) for row in rows]
        if view.samples:
            ids = {place: row["id"] for place, row in _read(directory, places, ["id"])}
            places = [p for p in places if ids[p] not in view.samples]
        found[source] = places[:most]
    return found


def places_of(directory: Path, shards: Iterable[Shard], ids: Iterable[str]) -> list[Place]:
    """Where the samples of these ids lie. Reads the column of ids and nothing else."""
    wanted = pa.array(sorted(ids), pa.string())
    found = []
    for shard in shards:
        first = 0
        for batch in record_batches(directory, shard):
            hits = pc.is_in(batch.column("id"), value_set=wanted).to_numpy(zero_copy_only=False)
            found += [(shard, first + int(i)) for i in np.flatnonzero(hits)]
            first += batch.num_rows
    return found


def in_turn(places: dict[str, list[Place]], n: int) -> list[Place]:
    """`n` of the places, the sources in turn, so that a small source is seen beside a large one."""
    longest = max((len(p) for p in places.values()), default=0)
    return [p[i] for i in range(longest) for p in places.values() if i < len(p)][:n]


def mixed(directory: Path, places: Sequence[Place]) -> list[Place]:
    """These places, one with a picture and one without in turn, so that a few rare pictures are seen."""
    shows = {place: bool(row["media"]) for place, row in _read(directory, places, ["media"])}
    of = {wanted: [p for p in places if shows[p] == wanted] for wanted in (True, False)}
    return in_turn({str(wanted): found for wanted, found in of.items()}, len(places))


def rows(
    directory: Path, places: Iterable[Place], columns: list[str] | None = None
) -> Iterator[tuple[Shard, dict[str, Any]]]:
    """(shard, row) of these places, in the order of the shards. Raises DataError where a shard is short."""
    for (shard, _), row in _read(directory, places, columns):
        yield shard, row


def _read(
    directory: Path, places: Iterable[Place], columns: list[str] | None
) -> Iterator[tuple[Place, dict[str, Any]]]:
    of: dict[str, tuple[Shard, list[int]]] = {}
    for shard, row in places:
        of.setdefault(shard.path, (shard, []))[1].append(row)
    for _, (shard, wanted) in sorted(of.items()):
        numbers = np.array(sorted(wanted), np.int64)
        first = read = 0
        for batch in record_batches(directory, shard):
            here = numbers[(numbers >= first) & (numbers < first + batch.num_rows)]
            if len(here):
                taken = (batch.select(columns) if columns else batch).take(pa.array(here - first))
                yield from (
                    ((shard, int(number)), row) for number, row in zip(here, taken.to_pylist(), strict=True)
                )
            first, read = first + batch.num_rows, read + len(here)
        if read < len(numbers):
            raise DataError(
                f"shard {directory / shard.path} holds fewer samples than the manifest says.\n"
                f"  Prove the dataset:  fovea data verify {directory}"
            )


def _place(shards: Sequence[Shard], ends: np.ndarray, row: int) -> Place:
    k = int(np.searchsorted(ends, row, side="right"))
    return shards[k], row - int(ends[k] - shards[k].samples)
