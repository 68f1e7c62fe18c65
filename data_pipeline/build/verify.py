"""Prove a dataset: every byte, row, image and count that its manifest claims. All faults are listed.

What is proved is the manifest and all that it names: records of tasks, shards in every format, indices, lists
of what was dropped, exclusions, and sidecar columns. What a build works with (build.json, .lock, logs/) and
pages that were put beside (a report, a preview) are no part of it.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.build.verify_exclusions import ExclusionBooks
from data_pipeline.build.verify_files import column_faults, file_faults, stranger_faults
from data_pipeline.build.verify_rows import Seen, row_faults
from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest, Shard, read_manifest

_SHOWN = 20


@dataclass(frozen=True)
class Verified:
    """What was proved, for one line of summary. `samples` and `images` are those of the shards."""

    samples: int
    images: int
    shards: int
    nbytes: int
    excluded: int
    seconds: float

    @property
    def megabytes_per_second(self) -> float:
        return self.nbytes / 1e6 / max(self.seconds, 1e-9)


def verify(directory: Path) -> Verified:
    """Read all of the dataset, in bounded memory. Raises DataError with every fault."""
    start = time.perf_counter()
    directory = Path(directory)
    manifest = read_manifest(directory)
    faults: list[str] = []
    count = 0
    for fault in _faults(directory, manifest):
        count += 1
        if len(faults) < _SHOWN:
            faults.append(f"  {fault}")
    if count:
        if count > _SHOWN:
            faults.append(f"  ... and {count - _SHOWN} more")
        raise DataError(f"{directory}: {count} fault(s)\n" + "\n".join(faults))
    arrow = manifest.shards(format="arrow")
    return Verified(
        samples=sum(s.samples for s in arrow),
        images=sum(s.images for s in arrow),
        shards=len(manifest.shards()),
        nbytes=sum(s.nbytes for s in manifest.shards()),
        excluded=sum(manifest.excluded(s.source, s.split, "samples") for s in _one_each(manifest)),
        seconds=time.perf_counter() - start,
    )


def _faults(directory: Path, manifest: Manifest) -> Iterator[str]:
    broken: set[str] = set()
    for path, fault in file_faults(directory, manifest):
        broken.add(path)
        yield fault
    yield from stranger_faults(directory, manifest)
    yield from column_faults(directory)
    yield from _books(manifest)
    exclusions = ExclusionBooks(directory, [e for e in manifest.exclusions if e.path not in broken])
    yield from exclusions.unreadable
    with Seen() as seen:
        for shard in manifest.shards(format="arrow"):
            if shard.path not in broken:
                yield from row_faults(directory, manifest, shard, seen, broken, exclusions.row)
        if seen.twice:
            yield f"{seen.twice} sample id(s) come more than once, for instance {seen.example}"
    if not any(s.path in broken for s in manifest.shards(format="arrow")):  # else rows were left unread
        yield from exclusions.end()


def _books(manifest: Manifest) -> Iterator[str]:
    """The funnel balances, and what it says was written is what the shards hold."""
    samples, images = Counter[str](), Counter[str]()
    for shard in manifest.shards(format="arrow"):
        samples[shard.source] += shard.samples
        images[shard.source] += shard.images
    for source, funnel in manifest.funnel.items():
        if not funnel.balanced:
            yield (
                f"source {source}: {funnel.read} read, {funnel.written} written, dropped {funnel.dropped}; "
                f"images {funnel.images_read} read, {funnel.images_written} written, "
                f"dropped {funnel.images_dropped}"
            )
        if funnel.written != samples[source]:
            yield f"source {source}: {funnel.written} written, but its shards hold {samples[source]}"
        if funnel.images_written != images[source]:
            yield (
                f"source {source}: {funnel.images_written} images written, "
                f"but its shards hold {images[source]}"
            )
    for source in sorted(set(samples) - set(manifest.funnel)):
        yield f"source {source}: has shards, but no funnel says where they come from"


def _one_each(manifest: Manifest) -> list[Shard]:
    """One shard of each (source, split)."""
    return list({(s.source, s.split): s for s in manifest.shards(format="arrow")}.values())
