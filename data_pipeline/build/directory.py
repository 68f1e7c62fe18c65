"""The directory of a build: whose it is, what in it is done, and what an interrupted build left behind."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.build.recipe import BuildRecipe, compared_page, recipe_fingerprint
from data_pipeline.build.write.shards import TASK_OF_SHARD
from data_pipeline.errors import DataError, PreflightError
from data_pipeline.manifest import (
    MANIFEST,
    Manifest,
    read_manifest,
    read_task_record,
    task_record_path,
    write_json,
)
from data_pipeline.sample import content_id

IDENTITY = "build.json"  # which build this directory belongs to, from its first second on
_MADE = ("manifest", "shards", "dropped", "examples")
_SHOWN = 5  # keys of a recipe that differ
_VALUE = 60  # characters of a value


def is_task_done(directory: Path, tasks: int, fingerprint: str, task: int) -> bool:
    """Its record exists, is of this build, and its shards are there in their recorded size."""
    path = task_record_path(directory, task)
    if not path.exists():
        return False
    try:
        record = read_task_record(path)
    except DataError:
        return False  # not a record: the task is done again and writes a sound one
    if (record.task, record.tasks, record.fingerprint) != (task, tasks, fingerprint):
        return False
    shards = ((directory / s.path, s.nbytes) for s in record.shards)
    return all(path.exists() and path.stat().st_size == nbytes for path, nbytes in shards)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One build at a time in a directory; the lock goes with the process, however it ends. Raises
    PreflightError where another has it."""
    directory.mkdir(parents=True, exist_ok=True)
    fd = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PreflightError(
                f"another build is at work in {directory}. Wait for it, or stop it."
            ) from None
        yield
    finally:
        os.close(fd)


def prepare(
    directory: Path, recipe: BuildRecipe, fingerprint: str, stamp: str, at_work: str | None = None
) -> Manifest | None:
    """Refuse a directory of another dataset; clear away what an interrupted or outdated build left.

    `at_work`: a Slurm job of an earlier command that still does this build's tasks; nothing is cleared under
    it. Returns the manifest of a build that was finished before.
    """
    path = directory / IDENTITY
    mine = {"recipe": recipe_fingerprint(recipe), "name": recipe.name, "inputs": content_id(stamp)}
    finished = read_manifest(directory) if (directory / MANIFEST).exists() else None
    found = _identity(path)
    if finished is None and found is None and any((directory / d).exists() for d in ("manifest", "shards")):
        raise DataError(
            f"{directory} holds shards, but no {IDENTITY}: not a build of Fovea. Choose another --out."
        )
    # Where a build of another recipe stopped before anything was made, nothing is lost by this one.
    made = finished is not None or any(p.is_file() for d in _MADE for p in (directory / d).glob("*"))
    other = made and found is not None and found["recipe"] != mine["recipe"]
    if other or (finished is not None and finished.fingerprint != fingerprint):
        name = finished.name if finished else (found or {}).get("name")
        differ = differences(_page_of(path), compared_page(recipe)) if other else []
        why = "another recipe" if differ else "another version of Fovea"
        why = why if other else "other inputs (files were added, removed or changed)"
        raise DataError(
            f"{directory} holds dataset '{name}', made of {why}.\n"
            + "".join(f"  {line}\n" for line in differ)
            + f"  Choose another --out, or delete {directory} first."
        )
    tasks = range(recipe.tasks)
    stale = {t for t in tasks if not is_task_done(directory, recipe.tasks, fingerprint, t)}
    changed = found is not None and found["inputs"] != mine["inputs"] and (finished is None or bool(stale))
    if at_work is not None:
        if changed:
            raise still_at_work(directory, at_work)
        return finished
    if changed:
        # Inputs were repaired or touched and are to be read: what one task reads now and what another one
        # read then would not be one dataset. A finished dataset that is whole needs no inputs any more.
        for record in (directory / "manifest").glob("*.json"):
            record.unlink()
        stale = set(tasks)
    for leftover in directory.rglob("*.tmp-*"):
        leftover.unlink(missing_ok=True)
    for shard in (directory / "shards").glob("*"):
        if (task := TASK_OF_SHARD.search(shard.name)) and int(task.group(1)) in stale:
            shard.unlink()
    write_json(path, {**mine, "page": compared_page(recipe)})
    return finished


def differences(there: Any, here: Any) -> list[str]:
    """A line for each of the first keys in which two recipes differ: what stands there, what here."""
    if not isinstance(there, dict):
        return []
    a, b = dict(_leaves(there)), dict(_leaves(here))
    lines = [
        f"{key}: {_value(a.get(key))} there, {_value(b.get(key))} here"
        for key in dict.fromkeys((*a, *b))
        if a.get(key) != b.get(key)
    ]
    return lines[:_SHOWN] + ([f"... and {len(lines) - _SHOWN} more keys"] if len(lines) > _SHOWN else [])


def _leaves(page: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(key as on the command line, value): the entries of `sources` by their names."""
    if isinstance(page, dict):
        for name, value in page.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif key == "sources" and all(isinstance(s, dict) for s in page):
        for source in page:
            yield from _leaves(
                {k: v for k, v in source.items() if k != "name"}, f"{key}.{source.get('name')}"
            )
    else:
        yield key, page


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _VALUE else f"{text[:_VALUE]}..."


def still_at_work(directory: Path, job_id: str) -> DataError:
    return DataError(
        f"Slurm job {job_id} of an earlier command still works on {directory}.\n"
        f"  Wait for it (the same command as before does), or end it:  scancel {job_id}"
    )


def _page_of(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")).get("page")


def _identity(path: Path) -> dict[str, str] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {k: str(found[k]) for k in ("recipe", "name", "inputs")}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as e:
        raise DataError(f"{path} is damaged ({e}). Delete {path.parent} and build again.") from None
