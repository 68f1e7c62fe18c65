"""A build, from recipe to manifest. Repeat it after any kill: only what is missing is done again."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from datatrove.pipeline.base import PipelineStep

from data_pipeline.build.cut import CutDocuments, Size
from data_pipeline.build.discover import discover
from data_pipeline.build.executor import BuildExecutor, is_task_done
from data_pipeline.build.images.check import CheckImages
from data_pipeline.build.read.captions import CaptionsReader
from data_pipeline.build.read.html import HtmlReader
from data_pipeline.build.read.interleaved import InterleavedReader
from data_pipeline.build.read.pdf import PdfReader
from data_pipeline.build.read.questions import QuestionsReader
from data_pipeline.build.read.reading import Folder, Reader
from data_pipeline.build.read.scenes import ScenesReader
from data_pipeline.build.recipe import (
    BuildRecipe,
    CaptionsSource,
    HtmlSource,
    InterleavedSource,
    PdfSource,
    QuestionsSource,
    ScenesSource,
    Source,
    load_build,
    recipe_fingerprint,
    source_path,
)
from data_pipeline.build.split import Split
from data_pipeline.build.steps import ReadSources
from data_pipeline.build.write.shards import TASK_OF_SHARD, WriteShards
from data_pipeline.errors import DataError
from data_pipeline.manifest import (
    MANIFEST,
    Manifest,
    TaskRecord,
    read_manifest,
    read_task_record,
    task_record_path,
    write_json,
    write_manifest,
)
from data_pipeline.sample import content_id

IDENTITY = "build.json"  # which build this directory belongs to, from its first second on
_SHOWN = 10


def build(
    recipe: BuildRecipe | str | Path,
    out: str | Path,
    *,
    root: str | Path | None = None,
    workers: int = 1,
    bad_inputs: str | None = None,
    overrides: Sequence[str] = (),
    unread: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Build the dataset of `recipe` in `out` and return its manifest.

    `recipe` is a value, a YAML file, the name of a shipped recipe, or a folder of documents (see discover).
    Relative paths of sources count from `root`, else from the recipe's file. `bad_inputs` ("stop" or
    "drop") overrides the recipe. Raises ConfigError for a faulty recipe, DataError for inputs that cannot
    be read (with "stop") and for a directory that holds another dataset.
    """
    if isinstance(recipe, BuildRecipe):
        base = Path.cwd()
    elif Path(recipe).is_dir():
        base = Path(recipe).resolve()
        recipe, unread = discover(base, overrides)
    else:
        recipe, base = load_build(recipe, overrides)
    root = Path(root).resolve() if root is not None else base
    directory = Path(out).resolve()
    readers = {s.name: _reader(s, root, recipe) for s in recipe.sources}
    inputs = {name: reader.inputs() for name, reader in readers.items()}
    fingerprint = content_id(recipe_fingerprint(recipe), _listing(inputs, readers, times=False))
    with _locked(directory):
        _prepare(directory, recipe, fingerprint, stamp=_listing(inputs, readers, times=True))
        pipeline = _pipeline(recipe, readers, directory, fingerprint)
        executor = BuildExecutor(
            pipeline, directory=directory, fingerprint=fingerprint, tasks=recipe.tasks, workers=workers
        )
        left = executor.get_incomplete_ranks()
        if done := recipe.tasks - len(left):
            say(f"{done} of {recipe.tasks} tasks are done already")
        executor.run(done=lambda task: say(f"task {task + 1} of {recipe.tasks} done"))
        records = [read_task_record(task_record_path(directory, t)) for t in range(recipe.tasks)]
        if (bad_inputs or recipe.bad_inputs) == "stop":
            _stop_at_bad_inputs(records, directory)
        manifest = Manifest(
            name=recipe.name,
            fingerprint=fingerprint,
            recipe=recipe.model_dump(mode="json", exclude={"bad_inputs"}),
            licences={s.name: s.license or "not stated" for s in recipe.sources},
            unread=tuple(unread),
            tasks=tuple(records),
        )
        write_manifest(directory, manifest)
    return manifest


def _pipeline(
    recipe: BuildRecipe, readers: dict[str, Reader], directory: Path, fingerprint: str
) -> list[PipelineStep]:
    sizes = {
        s.name: Size(s.max_chars, s.max_images, s.min_chars)
        for s in recipe.sources
        if isinstance(s, HtmlSource | InterleavedSource)
    }
    steps = [
        ReadSources(readers),
        CheckImages(recipe.images),
        CutDocuments(sizes, recipe.heldout),
        Split(recipe.heldout),
    ]
    return [*steps, WriteShards(directory, recipe, fingerprint, tuple(s.name for s in steps))]


def _reader(source: Source, root: Path, recipe: BuildRecipe) -> Reader:
    if isinstance(source, ScenesSource):
        return ScenesReader(source)
    path = source_path(source, root)
    folder = Folder(path if path.is_dir() else path.parent, recipe.images.max_bytes)
    match source:
        case HtmlSource():
            return HtmlReader(source, path, folder, recipe.heldout)
        case InterleavedSource():
            return InterleavedReader(source, path, folder, recipe.heldout)
        case CaptionsSource():
            return CaptionsReader(source, path, folder)
        case QuestionsSource():
            return QuestionsReader(source, path, folder)
        case PdfSource():
            return PdfReader(source, path, folder)


def _listing(inputs: dict[str, list[Path]], readers: dict[str, Reader], *, times: bool) -> str:
    """The input files by name and size; with their times as well, to notice a repair of equal size."""
    lines = []
    for source, paths in inputs.items():
        folder: Folder | None = getattr(readers[source], "folder", None)
        for path in paths:
            stat = path.stat()
            name = folder.name(path) if folder else path.name
            lines.append(f"{source}\t{name}\t{stat.st_size}" + (f"\t{stat.st_mtime_ns}" if times else ""))
    return "\n".join(lines)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One build at a time in a directory; the lock goes with the process, however it ends."""
    directory.mkdir(parents=True, exist_ok=True)
    fd = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another build is at work in {directory}. Wait for it, or stop it.") from None
        yield
    finally:
        os.close(fd)


def _prepare(directory: Path, recipe: BuildRecipe, fingerprint: str, stamp: str) -> None:
    """Refuse a directory of another dataset; clear away what an interrupted or outdated build left."""
    path = directory / IDENTITY
    mine = {"recipe": recipe_fingerprint(recipe), "name": recipe.name, "inputs": content_id(stamp)}
    finished = read_manifest(directory) if (directory / MANIFEST).exists() else None
    found = _identity(path)
    if finished is None and found is None and any((directory / d).exists() for d in ("manifest", "shards")):
        raise DataError(
            f"{directory} holds shards, but no {IDENTITY}: not a build of Fovea. Choose another --out."
        )
    other = found is not None and found["recipe"] != mine["recipe"]
    if other or (finished is not None and finished.fingerprint != fingerprint):
        name = finished.name if finished else (found or {}).get("name")
        why = "another recipe" if other else "other inputs (files were added, removed or changed)"
        raise DataError(
            f"{directory} holds dataset '{name}', made of {why}.\n"
            f"  Choose another --out, or delete {directory} first."
        )
    if finished is None and found is not None and found["inputs"] != mine["inputs"]:
        # Inputs were repaired or removed before the dataset existed: no task can be trusted.
        for record in (directory / "manifest").glob("*.json"):
            record.unlink()
    for leftover in directory.rglob("*.tmp-*"):
        leftover.unlink(missing_ok=True)
    stale = {t for t in range(recipe.tasks) if not is_task_done(directory, t, recipe.tasks, fingerprint)}
    for shard in (directory / "shards").glob("*"):
        if (task := TASK_OF_SHARD.search(shard.name)) and int(task.group(1)) in stale:
            shard.unlink()
    write_json(path, mine)


def _identity(path: Path) -> dict[str, str] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {k: str(found[k]) for k in ("recipe", "name", "inputs")}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as e:
        raise DataError(f"{path} is damaged ({e}). Delete {path.parent} and build again.") from None


def _stop_at_bad_inputs(records: Sequence[TaskRecord], directory: Path) -> None:
    bad = list({json.dumps(b, sort_keys=True): b for r in records for b in r.bad_inputs}.values())
    if not bad:
        return
    lines = [_printable(f"  {b['file']} ({b['where']}): {b['reason']}") for b in bad[:_SHOWN]]
    if len(bad) > _SHOWN:
        lines.append(f"  ... and {len(bad) - _SHOWN} more, in {directory / 'dropped'}")
    plural = "input" if len(bad) == 1 else "inputs"
    raise DataError(
        f"{len(bad)} {plural} cannot be read; the build of {directory} stops here:\n"
        + "\n".join(lines)
        + "\n  Remove or repair them and repeat the command,\n"
        "  or leave them out and count them:  the same command with --bad-inputs drop\n"
        "  (what was read is kept: the repeat takes seconds)"
    )


def _printable(text: str) -> str:
    """Names and reasons come from the inputs: no control character of theirs reaches a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
