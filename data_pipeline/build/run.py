"""A build, from recipe to manifest. Repeat it after any kill: only what is missing is done again."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from datatrove.pipeline.base import PipelineStep
from rich.console import Console

from data_pipeline.build.cut import CutDocuments, Size
from data_pipeline.build.dedup.corpus import Corpus
from data_pipeline.build.dedup.run import exclusions
from data_pipeline.build.directory import is_task_done, locked, prepare, still_at_work
from data_pipeline.build.discover import discover
from data_pipeline.build.executor import Executor, Job, LocalExecutor
from data_pipeline.build.fetch.step import FetchImages
from data_pipeline.build.filter.boilerplate import Table
from data_pipeline.build.filter.presets import image_limits, resolved, word_files
from data_pipeline.build.filter.steps import document_steps, text_steps
from data_pipeline.build.images.check import CheckImages
from data_pipeline.build.look.report import write_report
from data_pipeline.build.progress import Progress
from data_pipeline.build.read.reading import Reader
from data_pipeline.build.read.source import DocumentSource
from data_pipeline.build.read.warc import WarcReader
from data_pipeline.build.recipe import BuildRecipe, is_folder, load_build, recipe_fingerprint, recipe_page
from data_pipeline.build.slurm import SlurmExecutor, array_at_work
from data_pipeline.build.sources import expect_apart, listing, open_reader, passed_over
from data_pipeline.build.split import Split
from data_pipeline.build.steps import ReadSources
from data_pipeline.build.synthesize.local import local_endpoints
from data_pipeline.build.write.shards import WriteShards
from data_pipeline.errors import ConfigError, DataError, printable
from data_pipeline.manifest import (
    Manifest,
    TaskRecord,
    read_task_record,
    sha256_file,
    task_record_path,
    write_manifest,
)
from data_pipeline.sample import content_id
from data_pipeline.view import View, remove_unnamed, with_exclusions

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
    console: Console | None = None,
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
    elif is_folder(recipe):
        base = Path(recipe).resolve()
        if Path(out).resolve().is_relative_to(base):
            raise ConfigError(
                f"{out} lies inside {recipe}, the folder that is built: a repeat would read its own report.\n"
                "  Choose another --out"
            )
        recipe, unread = discover(base, overrides)
    else:
        recipe, base = load_build(recipe, overrides)
    root = Path(root).resolve() if root is not None else base
    directory = Path(out).resolve()
    executor = executor or LocalExecutor(workers)
    with ExitStack() as stack:
        endpoints = stack.enter_context(local_endpoints(recipe.sources, root))
        readers = {
            s.name: open_reader(s, recipe, root=root, directory=directory, endpoints=endpoints)
            for s in recipe.sources
        }
        expect_apart(readers, directory)
        lists = [_sha256_of_list(path) for path in word_files(recipe.filters_by_source(), root)]
        fingerprint = content_id(recipe_fingerprint(recipe), listing(readers, versions=False), *lists)
        stack.enter_context(locked(directory))
        inputs = listing(readers, versions=True)
        logs = directory / "logs" / fingerprint
        job_id, at = array_at_work(directory) or (None, None)
        if job_id is not None and not (isinstance(executor, SlurmExecutor) and at == logs):
            raise still_at_work(directory, job_id)
        finished = prepare(directory, recipe, fingerprint, stamp=inputs, at_work=job_id)
        tables = _tables(recipe, directory, content_id(fingerprint, inputs))
        job = Job(
            name=f"fovea-{recipe.name}",
            pipeline=_pipeline(recipe, readers, tables, root, directory, fingerprint),
            tasks=recipe.tasks,
            logs=logs,
            is_done=functools.partial(is_task_done, directory, recipe.tasks, fingerprint),
        )
        with Progress(directory, fingerprint, console or Console(quiet=True)) as progress:
            progress.update(recipe.tasks - len(job.left()), recipe.tasks)
            for reader in readers.values():
                if isinstance(reader, WarcReader):
                    reader.prepare()
            if job.left():
                _count_paragraphs(recipe, readers, tables, directory, executor)
            executor.run(job, after=lambda done: progress.update(done, recipe.tasks))
        _stop_at_changes(inputs, listing(readers, versions=True))
        records = [read_task_record(task_record_path(directory, t)) for t in range(recipe.tasks)]
        if (bad_inputs or recipe.bad_inputs) == "stop":
            _stop_at_bad_inputs(records, directory)
        manifest = Manifest(
            name=recipe.name,
            fingerprint=fingerprint,
            recipe=recipe_page(recipe),
            licences={s.name: s.license or "not stated" for s in recipe.sources},
            unread=tuple(unread) or passed_over(readers),
            tasks=tuple(records),
            # What was withdrawn from the finished dataset stays withdrawn, whatever is built again.
            exclusions=finished.exclusions if finished else (),
        )
        if manifest != finished:  # else nothing was done anew, and the copies are known
            manifest = _without_copies(manifest, recipe, directory, executor)
        write_manifest(directory, manifest)
        remove_unnamed(directory, manifest)
        # Empty, but where a run died while it cleared away, or counted inputs that have changed since.
        shutil.rmtree(directory / "work", ignore_errors=True)
        write_report(directory)
    return manifest


def _tables(recipe: BuildRecipe, directory: Path, inputs: str) -> dict[str, Table]:
    """Where the repeated paragraphs of these inputs stand, of the sources that ask for them to leave."""
    filters = recipe.filters_by_source()
    return {
        s.name: Table(directory / "cache" / "paragraphs" / f"{s.name}-{inputs}")
        for s in recipe.sources
        if isinstance(s, DocumentSource) and resolved(filters[s.name]).max_paragraph_count is not None
    }


def _count_paragraphs(
    recipe: BuildRecipe,
    readers: dict[str, Reader],
    tables: dict[str, Table],
    directory: Path,
    executor: Executor,
) -> None:
    filters = recipe.filters_by_source()
    for source, table in tables.items():
        most = resolved(filters[source]).max_paragraph_count
        if most is not None and not table.is_made():
            reader = readers[source]
            if isinstance(reader, WarcReader):
                reader = dataclasses.replace(reader, texts_only=True)
            table.make(reader, most, tasks=recipe.tasks, executor=executor, work=directory / "work")


def _pipeline(
    recipe: BuildRecipe,
    readers: dict[str, Reader],
    tables: dict[str, Table],
    root: Path,
    directory: Path,
    fingerprint: str,
) -> list[PipelineStep]:
    """Cheap before expensive: text before an image is fetched, headers before pixels (see CheckImages)."""
    filters = recipe.filters_by_source()
    steps: list[PipelineStep] = [
        ReadSources(readers),
        *text_steps(filters, root, tables),
        *([FetchImages(recipe.fetch, root)] if recipe.fetch else []),
        CheckImages(
            recipe.images, of_source={name: image_limits(f, recipe.images) for name, f in filters.items()}
        ),
        *document_steps(filters),
        CutDocuments(
            {
                s.name: Size(s.max_chars, s.max_images, s.min_chars)
                for s in recipe.sources
                if isinstance(s, DocumentSource)
            },
            recipe.heldout,
        ),
        Split(recipe.heldout),
    ]
    return [*steps, WriteShards(directory, recipe, fingerprint, tuple(s.name for s in steps))]


def _without_copies(manifest: Manifest, recipe: BuildRecipe, directory: Path, executor: Executor) -> Manifest:
    """The manifest with the exclusions of deduplication, if the recipe asks for it; it is not written yet."""
    if recipe.dedup is None:
        return with_exclusions(directory, manifest, "dedup", (), {})
    view = View.open(directory, manifest, leave_out="dedup")
    corpus = Corpus.of(directory, manifest, view)
    found = exclusions(corpus, recipe.dedup, directory / "work", tasks=recipe.tasks, executor=executor)
    return with_exclusions(directory, manifest, "dedup", found, recipe.dedup.model_dump(mode="json"))


def _sha256_of_list(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as e:
        raise ConfigError(f"filters: the word list {path} cannot be read: {e.strerror}") from None


def _stop_at_changes(before: str, after: str) -> None:
    """Tasks read the inputs at different times: what moves under them may come twice or not at all."""
    if before == after:
        return
    lines = {*before.split("\n")} ^ {*after.split("\n")}
    names = sorted({printable(line.split("\t")[1]) for line in lines if "\t" in line})
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    raise DataError(
        f"inputs were added, removed or changed while the build read them: {shown}\n"
        "  Repeat the command once nothing writes there: everything is read again."
    )


def _stop_at_bad_inputs(records: Sequence[TaskRecord], directory: Path) -> None:
    bad = list({json.dumps(b, sort_keys=True): b for r in records for b in r.bad_inputs}.values())
    if not bad:
        return
    lines = [printable(f"  {b['file']} ({b['where']}): {b['reason']}") for b in bad[:_SHOWN]]
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
