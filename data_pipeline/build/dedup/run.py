"""Deduplication of a built dataset: cheap before expensive, each step on what the ones before it left."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.build.dedup.config import DedupConfig
from data_pipeline.build.dedup.corpus import Corpus
from data_pipeline.build.dedup.documents import exact_exclusions, image_set_exclusions
from data_pipeline.build.dedup.images import image_exclusions
from data_pipeline.build.dedup.minhash import jobs, near_text_exclusions
from data_pipeline.build.executor import Executor, LocalExecutor
from data_pipeline.view import Exclusion


def exclusions(
    corpus: Corpus, config: DedupConfig, work: Path, *, tasks: int = 1, executor: Executor | None = None
) -> Iterator[Exclusion]:
    """Every copy that `config` asks to leave out. The same corpus gives the same, whatever `tasks` is.

    `work` takes temporary files (about 60 bytes an image, 1 KB a text), deleted at the end; after a run that
    was killed they save MinHash's finished tasks. `executor` runs those (default: this process).
    """
    work = work / "dedup"
    work.mkdir(parents=True, exist_ok=True)
    if config.documents.exact:
        yield from exact_exclusions(corpus, work)
    yield from image_exclusions(corpus, config.images, work)
    if config.documents.image_sets is not None:
        yield from image_set_exclusions(corpus, config.documents.image_sets, work)
    if config.documents.minhash is not None and corpus.blocks:
        tasks = min(tasks, len(corpus.blocks))
        folder, ordered = jobs(corpus, config.documents.minhash, work, tasks)
        for job in ordered:
            (executor or LocalExecutor()).run(job)
        yield from near_text_exclusions(corpus, folder, tasks)
    shutil.rmtree(work)
