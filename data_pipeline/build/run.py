"""A build, from recipe to manifest. Repeat it after any kill: only what is missing is done again."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from datatrove.pipeline.base import PipelineStep

from data_pipeline.build.cut import CutDocuments, Size
from data_pipeline.build.directory import is_task_done, locked, prepare
from data_pipeline.build.discover import discover
from data_pipeline.build.executor import Executor, Job, LocalExecutor
from data_pipeline.build.images.check import CheckImages
from data_pipeline.build.read.reading import Reader
from data_pipeline.build.recipe import (
    BuildRecipe,
    HtmlSource,
    InterleavedSource,
    load_build,
    recipe_fingerprint,
)
from data_pipeline.build.sources import listing, open_reader
from data_pipeline.build.split import Split
from data_pipeline.build.steps import ReadSources
from data_pipeline.build.write.shards import WriteShards
from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest, TaskRecord, read_task_record, task_record_path, write_manifest
from data_pipeline.sample import content_id
from data_pipeline.view import remove_unnamed

_SHOWN = 10


def build(
    recipe: BuildRecipe | str | Path,
    out: str | Path,
    *,
    root: str | Path | None = None,
    workers: int = 1,
    executor: Executor | None = None,
    bad_inputs: str | None = None,
    overrides: Sequence[str] = (),
    unread: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Build the dataset of `recipe` in `out` and return its manifest.

    `recipe` is a value, a YAML file, the name of a shipped recipe, or a folder of documents (see discover).
    Relative paths of sources count from `root`, else from the recipe's file. Tasks run on `executor`, else
    in `workers` processes here. `bad_inputs` ("stop" or "drop") overrides the recipe. Raises ConfigError for
    a faulty recipe, DataError for inputs that cannot be read (with "stop") and for a directory that holds
    another dataset.
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
    readers = {s.name: open_reader(s, root, recipe) for s in recipe.sources}
    fingerprint = content_id(recipe_fingerprint(recipe), listing(readers, times=False))
    with locked(directory):
        finished = prepare(directory, recipe, fingerprint, stamp=listing(readers, times=True))
        job = Job(
            name=f"fovea-{recipe.name}",
            pipeline=_pipeline(recipe, readers, directory, fingerprint),
            tasks=recipe.tasks,
            logs=directory / "logs" / fingerprint,
            is_done=functools.partial(is_task_done, directory, recipe.tasks, fingerprint),
        )
        if done := recipe.tasks - len(job.left()):
            say(f"{done} of {recipe.tasks} tasks are done already")
        (executor or LocalExecutor(workers)).run(
            job, after=lambda done: say(f"{done} of {recipe.tasks} tasks are done")
        )
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
            # What was withdrawn from the finished dataset stays withdrawn, whatever is built again.
            exclusions=finished.exclusions if finished else (),
        )
        write_manifest(directory, manifest)
        remove_unnamed(directory, manifest)
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
