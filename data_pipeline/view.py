"""What a dataset shows: its shards without its exclusions.

Deduplication, decontamination, thresholds on scores and opt-outs never rewrite a shard. Each commits a file
of exclusions, named by the manifest, and whoever reads the dataset reads it through this view.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.errors import DataError
from data_pipeline.excluded import ImageReasons, Reasons
from data_pipeline.manifest import (
    Exclusions,
    Manifest,
    Shard,
    commit,
    read_manifest,
    sha256_file,
    write_manifest,
)
from data_pipeline.sample import Sample

LIGHT = ("id", "kind", "source", "segments", "media")  # enough to judge a sample; no pixels
_OF_DOCUMENTS = ("interleaved", "pdf")


@dataclass(frozen=True)
class Exclusion:
    """A sample that is not to be seen, or (with `media_id`) one image of a document."""

    id: str
    media_id: str | None
    reason: str  # a short, closed phrase: the funnel counts by it
    detail: str = ""


@dataclass(frozen=True)
class View:
    """`samples`: excluded ids; `images`: excluded images by the id of their sample."""

    samples: Reasons = field(default_factory=Reasons)
    images: ImageReasons = field(default_factory=ImageReasons)

    @classmethod
    def open(cls, directory: Path, manifest: Manifest, *, leave_out: str | None = None) -> "View":
        """The view that the manifest names, of all its steps but `leave_out`.

        Raises DataError where a file of exclusions is missing or was altered.
        """
        records = [e for e in manifest.exclusions if e.step != leave_out]

        def each() -> Iterator[Exclusion]:
            return (e for record in records for e in read_exclusions(directory, record))

        # Read twice: what is held of ten million exclusions is arrays, at no time their strings.
        return cls(
            Reasons((e.id, e.reason) for e in each() if e.media_id is None),
            ImageReasons((e.id, e.media_id, e.reason) for e in each() if e.media_id is not None),
        )

    def __bool__(self) -> bool:
        return bool(self.samples or self.images)

    def apply(self, sample: Sample) -> Sample | None:
        """The sample as it is to be seen; None where it is excluded.

        An excluded image leaves the sequence and its bytes are withheld; its entry in `media` stays, with
        the reason in `error`, so that the numbers of the others hold.
        """
        if sample.id in self.samples:
            return None
        gone = self.images.get(sample.id)
        if not gone:
            return sample
        out = {i for i, m in enumerate(sample.media) if m.media_id in gone}
        return dataclasses.replace(
            sample,
            segments=tuple(s for s in sample.segments if s.media not in out),
            media=tuple(
                dataclasses.replace(m, error=f"excluded: {gone[m.media_id]}") if i in out else m
                for i, m in enumerate(sample.media)
            ),
            image_bytes=tuple(None if i in out else b for i, b in enumerate(sample.image_bytes)),
        )

    def kept_rows(self, ids: pa.Array) -> np.ndarray:
        """int64[n]: the rows of a batch that are to be seen, given its column of ids."""
        return np.flatnonzero(~self.samples.among(ids.to_pylist()))


def samples(
    directory: Path, *, source: str | None = None, split: str | None = None, manifest: Manifest | None = None
) -> Iterator[Sample]:
    """Every sample that the dataset shows, pixels and all, in the order of its shards."""
    manifest = manifest or read_manifest(directory)
    view = View.open(directory, manifest)
    for shard in manifest.shards(format="arrow", source=source, split=split):
        for batch in record_batches(directory, shard):
            for row in batch.to_pylist():
                if (seen := view.apply(Sample.from_row(row))) is not None:
                    yield seen


def light_rows(
    directory: Path,
    *,
    columns: Iterable[str] = LIGHT,
    manifest: Manifest | None = None,
    view: View | None = None,
) -> Iterator[tuple[Shard, dict[str, Any]]]:
    """(shard, row) of every sample that the dataset shows, these columns only: no image byte is read.

    `id` must be among the columns. As in `View.apply`, an image that is excluded keeps its place in `media`
    with the reason in `error`, and its segments are left out.
    """
    manifest = manifest or read_manifest(directory)
    view = View.open(directory, manifest) if view is None else view
    names = list(columns)
    for shard in manifest.shards(format="arrow"):
        for batch in record_batches(directory, shard):
            for row in batch.select(names).to_pylist():
                if row["id"] in view.samples:
                    continue
                yield shard, _without(row, view.images.get(row["id"]))


def record_batches(directory: Path, shard: Shard) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow shard, mapped and not copied."""
    try:
        with pa.memory_map(str(directory / shard.path)) as file:
            reader = pa.ipc.open_file(file)
            for i in range(reader.num_record_batches):
                yield reader.get_batch(i)
    except (pa.ArrowInvalid, OSError) as e:
        raise DataError(
            f"shard {directory / shard.path} cannot be read: {e}\n  Prove the dataset:  fovea data verify"
        ) from None


def exclude(directory: Path, step: str, found: Iterable[Exclusion], made: dict[str, Any]) -> Manifest:
    """Commit the exclusions of a step to a built dataset, in place of those that it committed before.

    See `with_exclusions`. Returns the manifest, which is on disk when this returns.
    """
    changed = with_exclusions(directory, read_manifest(directory), step, found, made)
    write_manifest(directory, changed)
    remove_unnamed(directory, changed)
    return changed


def with_exclusions(
    directory: Path, manifest: Manifest, step: str, found: Iterable[Exclusion], made: dict[str, Any]
) -> Manifest:
    """The manifest with the exclusions of a step, whose file is committed; the manifest itself is not yet.

    An image taken from a caption or a dialogue takes the sample with it, and so does the last content of a
    document. Each step's file says all that the step found, so that none depends on what another one finds
    when it is repeated; what an earlier step takes already is not counted again. `step` names the file:
    [a-z0-9-]+.
    """
    others = tuple(e for e in manifest.exclusions if e.step != step)
    view = View.open(directory, manifest, leave_out=step)
    whole: dict[str, Exclusion] = {}
    parts: dict[str, dict[str, Exclusion]] = {}
    for e in found:
        if e.media_id is None:
            whole.setdefault(e.id, e)
        else:
            parts.setdefault(e.id, {}).setdefault(e.media_id, e)
    named = Named.read(directory, others)
    books = [Books() for _ in range(len(others) + 1)]
    kept: list[Exclusion] = []
    concerned = {*whole, *parts, *named.of}
    for shard, row in light_rows(directory, manifest=manifest, view=View()) if concerned else ():
        if (key := row["id"]) not in concerned:
            continue
        left = _without(row, view.images.get(key))
        mine = _resolved(left, whole.get(key), parts.get(key, {}))
        kept += mine
        count_row(books, shard, row, [*named.of.get(key, []), *((len(others), e) for e in mine)])
    counted = [
        dataclasses.replace(e, counts=b.counts, reasons=b.reasons)
        for e, b in zip(others, books, strict=False)
    ]
    if kept:
        kept.sort(key=lambda e: (e.id, e.media_id or ""))
        lines = [json.dumps(dataclasses.asdict(e), sort_keys=True, ensure_ascii=False) + "\n" for e in kept]
        data = "".join(lines).encode()
        sha256 = hashlib.sha256(data).hexdigest()
        # Named by its content: a kill between this file and the manifest leaves the old pair whole.
        path = f"exclusions/{step}-{sha256[:12]}.jsonl"
        with commit(directory / path) as f:
            f.write(data)
        own = books[-1]
        counted.append(
            Exclusions(step=step, path=path, sha256=sha256, counts=own.counts, reasons=own.reasons, made=made)
        )
    return dataclasses.replace(manifest, exclusions=tuple(counted))


def remove_unnamed(directory: Path, manifest: Manifest) -> None:
    """Delete files of exclusions that the manifest, now on disk, does not name, and what a command that was
    killed left half written beside them and beside the manifest."""
    named = {e.path for e in manifest.exclusions}
    for old in (directory / "exclusions").iterdir() if (directory / "exclusions").is_dir() else ():
        if old.relative_to(directory).as_posix() not in named:
            old.unlink()
    for half in directory.glob("*.tmp-*"):
        half.unlink()


def read_exclusions(directory: Path, record: Exclusions) -> Iterator[Exclusion]:
    """The exclusions of one committed file, in its order.

    Raises DataError where it is missing or was altered.
    """
    path = directory / record.path
    if not path.exists() or sha256_file(path) != record.sha256:
        what = "was altered" if path.exists() else "is missing"
        raise DataError(f"{path} {what}: it says what dataset {directory} leaves out.\n  Restore it.")
    with path.open(encoding="utf-8") as f:
        for line in f:
            yield Exclusion(**json.loads(line))


@dataclass(frozen=True)
class Named:
    """`of[id]`: what the files of exclusions say of a sample, each with the number of its file, in order."""

    of: dict[str, list[tuple[int, Exclusion]]]

    @classmethod
    def read(cls, directory: Path, records: Sequence[Exclusions]) -> "Named":
        of: dict[str, list[tuple[int, Exclusion]]] = {}
        for number, record in enumerate(records):
            for e in read_exclusions(directory, record):
                of.setdefault(e.id, []).append((number, e))
        return cls(of)


@dataclass(frozen=True)
class Books:
    """What one step takes from the shards: `counts` and `reasons` as in `manifest.Exclusions`."""

    counts: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    reasons: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)

    def add(self, shard: Shard, e: Exclusion, images: int, text_chars: int) -> None:
        split = self.counts.setdefault(shard.source, {}).setdefault(
            shard.split, {"samples": 0, "images": 0, "text_chars": 0}
        )
        reasons = self.reasons.setdefault(shard.source, {"samples": {}, "images": {}})
        by = reasons["samples" if e.media_id is None else "images"]
        by[e.reason] = by.get(e.reason, 0) + 1
        split["samples"] += e.media_id is None
        split["images"] += images
        split["text_chars"] += text_chars


def count_row(
    books: Sequence[Books], shard: Shard, row: dict[str, Any], named: Iterable[tuple[int, Exclusion]]
) -> None:
    """Count what the steps take of a row as it is stored, in their order: `books[n]` is that of step n.

    What a step before took is not counted again.
    """
    gone: set[str] = set()
    for number, e in named:
        if e.media_id is None:
            images = sum(not m["error"] and m["media_id"] not in gone for m in row["media"])
            books[number].add(shard, e, images, sum(len(s["text"] or "") for s in row["segments"]))
            return
        if e.media_id not in gone:
            gone.add(e.media_id)
            books[number].add(shard, e, 1, 0)


def _resolved(row: dict[str, Any], whole: Exclusion | None, parts: dict[str, Exclusion]) -> list[Exclusion]:
    """What really leaves this sample: nothing, images, or all of it."""
    if whole is not None:
        return [whole]
    seen = [(i, m["media_id"]) for i, m in enumerate(row["media"]) if not m["error"]]
    held = [parts[media_id] for _, media_id in seen if media_id in parts]
    if not held:
        return []
    gone = {i for i, media_id in seen if media_id in parts}
    left = any(
        s["text"] or (s["media"] is not None and s["media"] not in gone) for s in row["segments"]
    )  # fmt: skip
    if row["kind"] in _OF_DOCUMENTS and left:
        return held
    return [dataclasses.replace(held[0], media_id=None)]


def _without(row: dict[str, Any], gone: Mapping[str, str] | None) -> dict[str, Any]:
    if not gone or "media" not in row:
        return row
    media = [
        {**m, "error": f"excluded: {gone[m['media_id']]}"} if m["media_id"] in gone else m
        for m in row["media"]
    ]
    changed = {**row, "media": media}
    if "segments" in row:
        out = {i for i, m in enumerate(row["media"]) if m["media_id"] in gone}
        changed["segments"] = [s for s in row["segments"] if s["media"] not in out]
    return changed
