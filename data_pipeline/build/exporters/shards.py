"""Fovea's own shards written anew, without what is excluded: for tools (`webdataset`, `parquet`), or as a
dataset of its own (`fovea`), from which the excluded is gone for good.
"""

import dataclasses
from collections import Counter
from pathlib import Path

from data_pipeline.build.images.cutting import without_images
from data_pipeline.build.steps import Cut, Dropped
from data_pipeline.build.write.shard import ShardWriter
from data_pipeline.manifest import (
    Funnel,
    Manifest,
    Shard,
    StepCount,
    TaskRecord,
    add_counts,
    write_manifest,
    write_task_record,
)
from data_pipeline.sample import Sample, content_id

_SHARD_SAMPLES, _SHARD_BYTES = 5000, 256 * 2**20


class Shards:
    """Rolling shards, one series for each (source, split)."""

    def __init__(self, out: Path, formats: tuple[str, ...], samples: int, nbytes: int):
        self.out, self.formats, self.max_samples, self.max_bytes = out, formats, samples, nbytes
        self.key: tuple[str, str] | None = None
        self.open: ShardWriter | None = None
        self.number: Counter[tuple[str, str]] = Counter()
        self.done: list[Shard] = []
        self.files: dict[str, str] = {}

    @classmethod
    def like(cls, manifest: Manifest, out: Path, formats: tuple[str, ...] | None = None) -> "Shards":
        """In the sizes of the dataset, and in its formats where none are given."""
        own = tuple(dict.fromkeys(s.format for s in manifest.shards()))
        return cls(
            out,
            formats or own,
            manifest.recipe.get("shard_samples", _SHARD_SAMPLES),
            manifest.recipe.get("shard_bytes", _SHARD_BYTES),
        )

    def add(self, sample: Sample, split: str) -> int:
        """The number of images written."""
        sample = without_excluded(sample)
        if self.open is None or self.key != (sample.source, split):
            self.close()
            self.key = sample.source, split
            stem = f"{sample.source}-{split}-00000-{self.number[self.key]:03d}"
            self.number[self.key] += 1
            self.open = ShardWriter(self.out, stem, sample.source, split, self.formats)
        self.open.add(sample)
        if self.open.samples >= self.max_samples or self.open.nbytes >= self.max_bytes:
            self.close()
        return len(sample.media)

    def close(self) -> None:
        if self.open is not None:
            self.done += self.open.finish()
            self.files |= self.open.files
            self.open = None

    def abandon(self) -> None:
        if self.open is not None:
            self.open.abandon()


def without_excluded(sample: Sample) -> Sample:
    """The sample without the entries of excluded images, which a view leaves in `media`."""
    cuts = [
        Cut(i, m.error, "")
        for i, (m, data) in enumerate(zip(sample.media, sample.image_bytes, strict=True))
        if data is None and m.error and m.error.startswith("excluded: ")
    ]
    left = without_images(sample, cuts, "export")
    assert not isinstance(left, Dropped), "the last content of a sample is never excluded alone"
    return left.sample


class Fovea(Shards):
    """The shards with a manifest: a dataset that verifies, whose funnel says what the copy left out."""

    manifest: Manifest

    def finish(self, manifest: Manifest, written: dict[str, tuple[int, int]], whole: bool) -> None:
        """`written`: (samples, images) by source. `whole`: nothing but exclusions was left out."""
        funnel = {
            source: _shortened(manifest, source, *counts, whole=whole) for source, counts in written.items()
        }
        fingerprint = content_id(manifest.fingerprint, "copy", manifest.digest, *sorted(written))
        record = TaskRecord(
            task=0,
            tasks=1,
            fingerprint=fingerprint,
            shards=tuple(sorted(self.done, key=lambda s: s.path)),
            funnel=funnel,
            files=dict(sorted(self.files.items())),
        )
        write_task_record(self.out, record)
        licences = {k: v for k, v in manifest.licences.items() if k in written}
        copy = dataclasses.replace(
            manifest, fingerprint=fingerprint, tasks=(record,), exclusions=(), licences=licences
        )
        write_manifest(self.out, copy)


def _shortened(manifest: Manifest, source: str, samples: int, images: int, *, whole: bool) -> Funnel:
    before = manifest.funnel.get(source, Funnel())
    out: dict[str, int] = {}
    for record in manifest.exclusions if whole else ():
        for reason, n in record.reasons.get(source, {}).get("samples", {}).items():
            out[f"excluded: {reason}"] = out.get(f"excluded: {reason}", 0) + n
    if left := before.written - samples - sum(out.values()):
        out["not copied"] = left
    gone = before.images_written - images
    return dataclasses.replace(
        before,
        written=samples,
        dropped=add_counts(before.dropped, out),
        images_written=images,
        images_dropped=add_counts(before.images_dropped, {"excluded or not copied": gone} if gone else {}),
        steps=(*before.steps, StepCount(step="export", samples=samples, images=images, dropped=out)),
    )
