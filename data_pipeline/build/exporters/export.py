"""A dataset in another format: what it shows, exclusions honoured, as files that other tools read.

What a format cannot say is left out and counted, never bent. An export appears whole or not at all.
"""

import fcntl
import glob
import os
import shutil
import uuid
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from data_pipeline.build.exporters.cauldron import Cauldron
from data_pipeline.build.exporters.elements import Unfit
from data_pipeline.build.exporters.llava import Llava
from data_pipeline.build.exporters.messages import Messages
from data_pipeline.build.exporters.mint1t import Mint1t
from data_pipeline.build.exporters.mmc4 import Mmc4
from data_pipeline.build.exporters.obelics import Obelics
from data_pipeline.build.exporters.shards import Fovea, Shards
from data_pipeline.errors import ConfigError, DataError, nearest
from data_pipeline.manifest import Manifest, fsync_directory, read_manifest, write_json
from data_pipeline.sample import Sample
from data_pipeline.view import samples

FORMATS = ("fovea", "webdataset", "parquet", "obelics", "mmc4", "cauldron", "llava", "messages", "mint1t")


class Exporter(Protocol):
    """Writes into a folder of its own; `add` raises Unfit for a sample that the format cannot say."""

    def add(self, sample: Sample, split: str) -> int: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Exported:
    """What was written; `left_out` counts samples by why the format has no place for them."""

    format: str
    samples: int
    images: int
    left_out: dict[str, int]
    by_split: dict[str, int]


def export(
    directory: Path, out: Path, format: str, *, source: str | None = None, split: str | None = None
) -> Exported:
    """Write what the dataset shows, or one source or split of it, to the folder `out`.

    Raises ConfigError for an unknown format, source or split and for a folder that holds something already,
    DataError for a shard that cannot be read, and where no sample fits the format.
    """
    directory, out = Path(directory), Path(out)
    manifest = read_manifest(directory)
    pairs = _pairs(manifest, source, split)
    if format not in FORMATS:
        raise ConfigError(
            f"no format '{format}'{nearest(format, FORMATS)}\n  It is one of {', '.join(FORMATS)}"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} holds something already. Choose another --out, or delete it first.")
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(out)
    temporary = out.with_name(f".{out.name}.tmp-{uuid.uuid4().hex}")
    temporary.mkdir()
    fd = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # it is at work; the lock goes with the process, however it ends
        exporter = _exporter(format, temporary, manifest)
        exported = _write(directory, manifest, pairs, exporter, format)
        if not exported.samples:
            why = "".join(f"\n  left out, {reason}: {n:,}" for reason, n in exported.left_out.items())
            raise DataError(
                f"no export is made: {directory} shows nothing that the format '{format}' can say{why}"
            )
        page = {**asdict(exported), "dataset": manifest.digest, "licences": manifest.licences}
        write_json(temporary / "export.json", page)
        _fsync_files(temporary)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
        fsync_directory(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(fd)
    return exported


def describe(exported: Exported) -> list[str]:
    """The summary for a terminal."""
    splits = ", ".join(f"{n:,} {split}" for split, n in exported.by_split.items())
    lines = [f"{exported.samples:,} samples ({splits or 'none'}) with {exported.images:,} images"]
    lines += [f"  left out, {reason}: {n:,}" for reason, n in exported.left_out.items()]
    return lines


def _remove_abandoned(out: Path) -> None:
    """Delete what exports to `out` that were killed left behind; one that is at work keeps its folder."""
    for folder in out.parent.glob(f".{glob.escape(out.name)}.tmp-*"):
        fd = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        except BlockingIOError:
            pass
        finally:
            os.close(fd)


def _write(
    directory: Path, manifest: Manifest, pairs: list[tuple[str, str]], exporter: Exporter, format: str
) -> Exported:
    left_out = Counter[str]()
    by_split = Counter[str]()
    written: dict[str, tuple[int, int]] = {}
    for source, split in pairs:
        for sample in samples(directory, source=source, split=split, manifest=manifest):
            try:
                images = exporter.add(sample, split)
            except Unfit as e:
                left_out[e.reason] += 1
                continue
            by_split[split] += 1
            before = written.get(source, (0, 0))
            written[source] = before[0] + 1, before[1] + images
    exporter.close()
    if isinstance(exporter, Fovea):
        everything = {s: written.get(s, (0, 0)) for s in manifest.funnel if any(p[0] == s for p in pairs)}
        exporter.finish(manifest, everything, whole=pairs == _pairs(manifest, None, None))
    return Exported(
        format=format,
        samples=sum(by_split.values()),
        images=sum(n for _, n in written.values()),
        left_out=dict(sorted(left_out.items())),
        by_split=dict(sorted(by_split.items())),
    )


def _fsync_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as f:
                os.fsync(f.fileno())


def _pairs(manifest: Manifest, source: str | None, split: str | None) -> list[tuple[str, str]]:
    """(source, split) of what is asked for, in the order in which it is written."""
    every = sorted({(s.source, s.split) for s in manifest.shards(format="arrow")})
    sources, splits = sorted({s for s, _ in every}), sorted({s for _, s in every})
    for kind, value, known in (("source", source, sources), ("split", split, splits)):
        if value is not None and value not in known:
            raise ConfigError(
                f"dataset '{manifest.name}' has no {kind} '{value}'{nearest(value, known)}\n"
                f"  It has: {', '.join(known)}"
            )
    return [(s, p) for s, p in every if source in (None, s) and split in (None, p)]


def _exporter(format: str, out: Path, manifest: Manifest) -> Exporter:
    match format:
        case "fovea":
            return Fovea.like(manifest, out)
        case "webdataset" | "parquet":
            return Shards.like(manifest, out, (format,))
        case "obelics":
            return Obelics(out)
        case "mmc4":
            return Mmc4(out)
        case "cauldron":
            return Cauldron(out)
        case "llava":
            return Llava(out)
        case "messages":
            return Messages(out)
        case "mint1t":
            return Mint1t(out)
    raise DataError(f"no exporter writes '{format}'")
