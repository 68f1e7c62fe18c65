"""What a built dataset is: its manifest, never a glob.

    DIR/manifest.json            the dataset: recipe, fingerprint, licences, funnel, the tasks' records
    DIR/manifest/00000.json      one record per build task: its shards with bytes, sha256 and counts
    DIR/shards/*.arrow|*.tar     the shards
    DIR/exclusions/*.jsonl       what later steps took out: the shards stay as they are (view.py)
    DIR/dropped/00000.jsonl      what each task left out, one line a sample or image

A shard is committed by temporary file, fsync, rename; then its task's record; `manifest.json` comes last
and makes the dataset exist. A kill at any point leaves either no record or a record that verifies.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from data_pipeline.errors import DataError
from data_pipeline.sample import SCHEMA_VERSION

T = TypeVar("T")
MANIFEST = "manifest.json"
SPLITS = ("train", "heldout")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One committed shard file. `path` is relative to the dataset's directory."""

    path: str
    format: str  # arrow | webdataset | parquet
    split: str  # train | heldout
    source: str
    nbytes: int
    sha256: str
    samples: int
    images: int
    text_chars: int


@dataclass(frozen=True, kw_only=True)
class StepCount:
    """What left one step of the build: samples with their images and characters; and what it dropped."""

    step: str
    samples: int = 0
    images: int = 0
    text_chars: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    images_dropped: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: "StepCount") -> "StepCount":
        return StepCount(
            step=self.step,
            samples=self.samples + other.samples,
            images=self.images + other.images,
            text_chars=self.text_chars + other.text_chars,
            dropped=add_counts(self.dropped, other.dropped),
            images_dropped=add_counts(self.images_dropped, other.images_dropped),
        )


@dataclass(frozen=True, kw_only=True)
class Funnel:
    """What came in and where it went, per source: what was read was written or dropped, samples and images.

    A document that is cut into n samples counts as n read, and so do the images that its pieces share.
    An image that goes with its sample is dropped for the sample's reason.
    """

    read: int = 0
    written: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    images_read: int = 0
    images_written: int = 0
    images_dropped: dict[str, int] = field(default_factory=dict)
    steps: tuple[StepCount, ...] = ()

    @property
    def balanced(self) -> bool:
        return (
            self.read == self.written + sum(self.dropped.values())
            and self.images_read == self.images_written + sum(self.images_dropped.values())
        )  # fmt: skip

    def __add__(self, other: "Funnel") -> "Funnel":
        mine = {s.step: s for s in self.steps}
        theirs = {s.step: s for s in other.steps}
        order = list(dict.fromkeys([*mine, *theirs]))
        return Funnel(
            read=self.read + other.read,
            written=self.written + other.written,
            dropped=add_counts(self.dropped, other.dropped),
            images_read=self.images_read + other.images_read,
            images_written=self.images_written + other.images_written,
            images_dropped=add_counts(self.images_dropped, other.images_dropped),
            steps=tuple(mine.get(s, StepCount(step=s)) + theirs.get(s, StepCount(step=s)) for s in order),
        )


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """What one build task committed: shards in every format, the funnel of each source.

    `bad_inputs` names every input that could not be read: {"file", "where", "reason"}. `files` are the
    sha256 of what it committed beside its shards, by path: indices of tars, the list of what was dropped.
    """

    task: int
    tasks: int
    fingerprint: str
    shards: tuple[Shard, ...]
    funnel: dict[str, Funnel]
    bad_inputs: tuple[dict[str, str], ...] = ()
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Exclusions:
    """One committed file of exclusions. `made` says how: the step's configuration, to read and to repeat.

    `counts`: {source: {split: {"samples", "images", "text_chars"}}}, what they take from the shards beyond
    what the files before take; `reasons`: {source: {"samples": {reason: n}, "images": {reason: n}}}.
    """

    step: str
    path: str
    sha256: str
    counts: dict[str, dict[str, dict[str, int]]]
    reasons: dict[str, dict[str, dict[str, int]]]
    made: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A whole dataset. `digest` identifies its content: training state refuses another one."""

    name: str
    fingerprint: str
    recipe: dict[str, Any]
    licences: dict[str, str]
    unread: tuple[str, ...]
    tasks: tuple[TaskRecord, ...]
    exclusions: tuple[Exclusions, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def digest(self) -> str:
        content = [(s.path, s.sha256) for s in self.shards()]
        content += [(e.path, e.sha256) for e in self.exclusions]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]

    @property
    def funnel(self) -> dict[str, Funnel]:
        total: dict[str, Funnel] = {}
        for task in self.tasks:
            for source, funnel in task.funnel.items():
                total[source] = total.get(source, Funnel()) + funnel
        return total

    def shards(
        self, *, format: str | None = None, split: str | None = None, source: str | None = None
    ) -> list[Shard]:
        """The shards that match, in a fixed order."""
        wanted = {"format": format, "split": split, "source": source}
        return sorted(
            (
                s
                for t in self.tasks
                for s in t.shards
                if all(v is None or getattr(s, k) == v for k, v in wanted.items())
            ),
            key=lambda s: s.path,
        )

    def sources(self) -> dict[str, int]:
        """Training samples by source, those excluded not counted."""
        counts: dict[str, int] = {}
        for s in self.shards(format="arrow", split="train"):
            counts[s.source] = counts.get(s.source, 0) + s.samples
        return {name: n - self.excluded(name, "train", "samples") for name, n in counts.items()}

    def excluded(self, source: str, split: str, what: str) -> int:
        """How many samples, images or text_chars of (source, split) the exclusions take away."""
        return sum(e.counts.get(source, {}).get(split, {}).get(what, 0) for e in self.exclusions)


def add_counts(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {k: a.get(k, 0) + b.get(k, 0) for k in sorted({*a, *b})}


def task_record_path(directory: Path, task: int) -> Path:
    return directory / "manifest" / f"{task:05d}.json"


def write_task_record(directory: Path, record: TaskRecord) -> None:
    write_json(task_record_path(directory, record.task), dataclasses.asdict(record))


def read_task_record(path: Path) -> TaskRecord:
    """Raises DataError where the file is missing or is no task record."""
    return _parse(path, _task_record)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    write_json(directory / MANIFEST, sealed(manifest))


def sealed(manifest: Manifest) -> dict[str, Any]:
    return seal(dataclasses.asdict(manifest))


def seal(page: dict[str, Any]) -> dict[str, Any]:
    """The page with the sha256 of all the rest of it: no other file vouches for what a record says."""
    return {**page, "sha256": hashlib.sha256(json_bytes(page)).hexdigest()}


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the dataset in `directory`.

    Raises DataError where there is none, or where it was written under another schema version.
    """
    path = Path(directory) / MANIFEST
    if not path.exists():
        raise DataError(
            f"no manifest at {path}: a dataset is its manifest, and this directory has none.\n"
            f"  Build it:  fovea data build RECIPE --out {directory}"
        )
    return _parse(path, _manifest)


def check_shard(directory: Path, shard: Shard) -> None:
    """Raise DataError unless the shard has the recorded size and sha256."""
    path = directory / shard.path
    fix = "Copy the shard again, or delete it and repeat the build command: only its task is redone."
    if not path.exists():
        raise DataError(f"shard {path} is missing (the manifest lists {shard.samples} samples).\n  {fix}")
    size = path.stat().st_size
    if size != shard.nbytes:
        raise DataError(
            f"shard {path} has {size:,} bytes, the manifest says {shard.nbytes:,}: "
            f"{'truncated' if size < shard.nbytes else 'something was added'}.\n  {fix}"
        )
    if (found := sha256_file(path)) != shard.sha256:
        raise DataError(
            f"shard {path} was altered: sha256 is {found}, the manifest says {shard.sha256}.\n  {fix}"
        )


def sha256_file(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@contextlib.contextmanager
def commit(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` whole or not at all: temporary file, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
        fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: Path, value: Any) -> None:
    """Commit `value` as JSON with sorted keys."""
    with commit(path) as f:
        f.write(json_bytes(value))


def json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _parse(path: Path, build: Callable[[dict[str, Any]], T]) -> T:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if (version := raw.get("schema_version", SCHEMA_VERSION)) != SCHEMA_VERSION:
            raise DataError(
                f"{path}: schema version {version}, this release reads {SCHEMA_VERSION}.\n"
                "  Delete the dataset and build it again, or build with another --out."
            )
        return build(raw)
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Repeat the build command.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        fix = "Repeat the build command."
        if path.name == MANIFEST:  # a build refuses what it cannot compare itself with
            fix = (
                "\n  Take it back from a copy, or delete it and repeat the build command, which keeps shards."
                "\n  What was withdrawn, filtered or decontaminated is then to be so again: it stood there."
            )
        raise DataError(f"{path} is not a manifest of Fovea: {e}. {fix}") from None


def _task_record(raw: dict[str, Any]) -> TaskRecord:
    return TaskRecord(
        task=raw["task"],
        tasks=raw["tasks"],
        fingerprint=raw["fingerprint"],
        shards=tuple(Shard(**s) for s in raw["shards"]),
        funnel={
            k: Funnel(**{**v, "steps": tuple(StepCount(**s) for s in v["steps"])})
            for k, v in raw["funnel"].items()
        },
        bad_inputs=tuple(raw["bad_inputs"]),
        files=raw.get("files", {}),
    )


def _manifest(raw: dict[str, Any]) -> Manifest:
    lists = {
        "unread": tuple(raw["unread"]),
        "tasks": tuple(_task_record(t) for t in raw["tasks"]),
        "exclusions": tuple(Exclusions(**e) for e in raw["exclusions"]),
    }
    # The seal is not looked at here: `fovea data verify` does that.
    return Manifest(**{**{k: v for k, v in raw.items() if k != "sha256"}, **lists})
