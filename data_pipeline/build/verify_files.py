"""Every file of a dataset by its bytes: what the manifest names is there unaltered, and nothing else is."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.manifest import (
    MANIFEST,
    Manifest,
    TaskRecord,
    check_shard,
    json_bytes,
    seal,
    sealed,
    sha256_file,
    task_record_path,
)

_COLUMN = "COLUMN.json"


def file_faults(directory: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(path, fault) of each file that is missing or is not what the manifest says."""
    if (directory / MANIFEST).read_bytes() != json_bytes(sealed(manifest)):
        yield MANIFEST, f"{MANIFEST}: was altered, or written by an earlier release"
    for task in manifest.tasks:
        yield from _record_faults(directory, task)
        for path, sha256 in task.files.items():
            if fault := _sha256_fault(directory, path, sha256):
                yield path, fault
            elif path.startswith("dropped/"):
                yield from _listing_faults(directory, path, task)
    for shard in manifest.shards():
        try:
            check_shard(directory, shard)
        except DataError as e:
            yield shard.path, str(e)
    for record in manifest.exclusions:
        if fault := _sha256_fault(directory, record.path, record.sha256):
            yield record.path, fault


def stranger_faults(directory: Path, manifest: Manifest) -> Iterator[str]:
    """Files where only those of the dataset belong."""
    listed = {s.path for s in manifest.shards()} | {e.path for e in manifest.exclusions}
    for task in manifest.tasks:
        listed |= {*task.files, task_record_path(directory, task.task).relative_to(directory).as_posix()}
    for folder in ("dropped", "exclusions", "manifest", "shards"):
        for path in sorted((directory / folder).rglob("*")):
            name = path.relative_to(directory).as_posix()
            if name not in listed and not path.is_dir():
                yield f"{name}: in the directory, but not in the manifest"


def column_faults(directory: Path) -> Iterator[str]:
    """Sidecar columns: columns/NAME/COLUMN.json lists {path, sha256} of the files beside it."""
    for home in sorted((directory / "columns").glob("*")):
        shown = home.relative_to(directory).as_posix()
        if not home.is_dir():
            yield f"{shown}: in the directory, but no column"
            continue
        if not (home / _COLUMN).is_file():
            yield f"{shown}/{_COLUMN} is missing: the column was not finished. Make it again, or delete it."
            continue
        try:
            files = _column_files(home)
        except (ValueError, KeyError, TypeError) as e:
            yield f"{shown}/{_COLUMN}: no record of a column, or altered: {e}"
            continue
        for path, sha256 in files.items():
            if fault := _sha256_fault(home, path, sha256):
                yield f"{shown}/{fault}"
        for present in sorted(home.rglob("*")):
            name = present.relative_to(home).as_posix()
            if name not in files and name != _COLUMN and not present.is_dir():
                yield f"{shown}/{name}: in the directory, but not in {_COLUMN}"


def _column_files(home: Path) -> dict[str, str]:
    data = (home / _COLUMN).read_bytes()
    page: dict[str, Any] = json.loads(data)
    rest = {k: v for k, v in page.items() if k != "sha256"}
    if json_bytes(seal(rest) if "sha256" in page else page) != data:
        raise ValueError("it is not as it was written")
    files = {f["path"]: f["sha256"] for f in page["files"]}
    if outside := [p for p in files if Path(p).name != p]:
        raise ValueError(f"it names {outside[0]!r}, which does not lie beside it")
    return files


def _record_faults(directory: Path, task: TaskRecord) -> Iterator[tuple[str, str]]:
    path = task_record_path(directory, task.task)
    name = path.relative_to(directory).as_posix()
    if not path.is_file():
        yield name, f"{name} is missing: it is the record of task {task.task}"
    elif path.read_bytes() != json_bytes(dataclasses.asdict(task)):
        yield name, f"{name}: does not say what {MANIFEST} says of task {task.task}"


def _listing_faults(directory: Path, path: str, task: TaskRecord) -> Iterator[tuple[str, str]]:
    """Each dropped sample stands in the list, under the reason for which the funnel counts it."""
    listed = Counter[tuple[str, str]]()
    with (directory / path).open(encoding="utf-8") as f:
        for line in f:
            entry = json.loads(line)
            if entry["part"] == "sample":
                listed[entry["source"], entry["class"]] += 1
    counted = {(source, r): n for source, f in task.funnel.items() for r, n in f.dropped.items()}
    if listed != Counter(counted):
        yield path, f"{path}: lists {dict(listed)} as dropped, the funnel counts {counted}"


def _sha256_fault(directory: Path, name: str, sha256: str) -> str | None:
    path = directory / name
    if not path.is_file():
        return f"{name} is missing"
    if (found := sha256_file(path)) != sha256:
        return f"{name} was altered: sha256 is {found}, recorded is {sha256}"
    return None
