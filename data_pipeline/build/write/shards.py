"""The only sink: what is sound goes into shards, what is not is counted and listed."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_pipeline.build.look.examples import Examples, write_examples
from data_pipeline.build.read.reading import Fault
from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.build.split import split_of
from data_pipeline.build.steps import record
from data_pipeline.build.write.shard import MAX_SAMPLE_BYTES, ShardWriter, sample_bytes
from data_pipeline.manifest import (
    Funnel,
    Shard,
    StepCount,
    TaskRecord,
    commit,
    sha256_file,
    write_task_record,
)
from data_pipeline.sample import Sample

TASK_OF_SHARD = re.compile(r"-(?:train|heldout)-(\d{5})-\d{3,}\.(?:arrow|parquet|tar|tar\.idx)$")


class WriteShards(PipelineStep):
    """Writes the shards of one task, then its record; only the record makes them count."""

    type = "write"
    name = "shards"

    def __init__(self, directory: Path, recipe: BuildRecipe, fingerprint: str, steps: tuple[str, ...] = ()):
        """`steps`: the names of the steps before this one, in the order in which the funnel shows them."""
        super().__init__()
        self.directory = directory
        self.recipe = recipe
        self.fingerprint = fingerprint
        self.steps = (*steps, self.name)

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        task = _Task(self.directory, self.recipe, rank, self.steps)
        dropped = f"dropped/{rank:05d}.jsonl"
        with commit(self.directory / dropped) as listing, task:
            for doc in data:
                mark = doc.metadata
                if "read" in mark:
                    task.end_source(mark["source"], mark["read"], mark["images_read"])
                    continue
                for line in task.take(doc):
                    listing.write((json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n").encode())
                yield doc
        listed = (dropped, write_examples(self.directory, rank, task.examples))
        files = {**task.files, **{path: sha256_file(self.directory / path) for path in listed}}
        task_record = TaskRecord(
            task=rank,
            tasks=world_size,
            fingerprint=self.fingerprint,
            shards=tuple(sorted(task.shards, key=lambda s: s.path)),
            funnel=task.funnel,
            bad_inputs=tuple(task.bad_inputs),
            files=dict(sorted(files.items())),
        )
        write_task_record(self.directory, task_record)


class _Task:
    """What one task has open and has counted so far."""

    def __init__(self, directory: Path, recipe: BuildRecipe, rank: int, steps: tuple[str, ...]):
        self.directory, self.recipe, self.rank, self.steps = directory, recipe, rank, steps
        self.open: dict[str, ShardWriter] = {}
        self.number: Counter[str] = Counter()
        self.counted = _Counted(self.steps)
        self.shards: list[Shard] = []
        self.files: dict[str, str] = {}
        self.funnel: dict[str, Funnel] = {}
        self.bad_inputs: list[dict[str, str]] = []
        self.examples = Examples()

    def __enter__(self) -> "_Task":
        return self

    def __exit__(self, *exception: Any) -> None:
        for shard in self.open.values():
            shard.abandon(*exception)

    def take(self, doc: Document) -> Iterator[dict[str, str]]:
        """Write the sample or count it as dropped. Yields what to list: the fault, and the images cut out."""
        mark = doc.metadata
        if mark["fault"] is None and (large := _too_large(mark)) is not None:
            mark["fault"], mark["at"] = large, WriteShards.name
        elif mark["fault"] is None:
            record(mark, WriteShards.name)
        fault: Fault | None = mark["fault"]
        self.counted.flow(mark)
        for cut in mark["cuts"]:
            self.examples.add_image(mark["source"], cut, mark["sample"], cut.image)
            yield self._listed(cut, doc, "image")
        if fault is not None:
            self.examples.add_sample(mark["source"], fault, mark["sample"])
            yield self._listed(fault, doc, "sample")
            return
        split = split_of(mark["sample"], self.recipe.heldout)
        assert split is not None, "the step before refuses samples of both splits"
        self._write(mark["sample"], mark["source"], split)
        self.counted.written += 1
        self.counted.images_written += len(mark["sample"].media)

    def end_source(self, source: str, read: int, images_read: int) -> None:
        """Close the source's shards. What its reader counted must be what arrived here."""
        for split in sorted(self.open):
            self._finish(split)
        funnel = self.counted.funnel(read, images_read)
        if not funnel.balanced:
            raise AssertionError(f"source {source}: a step lost samples or images: {funnel}")
        self.funnel[source] = funnel
        self.counted = _Counted(self.steps)

    def _write(self, sample: Sample, source: str, split: str) -> None:
        if split not in self.open:
            n = self.number[f"{source}-{split}"]
            self.number[f"{source}-{split}"] += 1
            stem = f"{source}-{split}-{self.rank:05d}-{n:03d}"
            self.open[split] = ShardWriter(self.directory, stem, source, split, self.recipe.formats)
        shard = self.open[split]
        shard.add(sample)
        if shard.samples >= self.recipe.shard_samples or shard.nbytes >= self.recipe.shard_bytes:
            self._finish(split)

    def _finish(self, split: str) -> None:
        shard = self.open.pop(split)
        self.shards.extend(shard.finish())
        self.files.update(shard.files)

    def _listed(self, fault: Fault, doc: Document, part: str) -> dict[str, str]:
        line = {"file": fault.file, "where": fault.where, "reason": fault.detail}
        source = doc.metadata["source"]
        if fault.bad:
            self.bad_inputs.append(line)
        return {**line, "id": doc.id, "source": source, "part": part, "class": fault.reason}


class _Counted:
    """What one source of the task has come to so far."""

    def __init__(self, steps: tuple[str, ...]) -> None:
        self.written = self.images_written = 0
        self.steps: dict[str, list[int]] = {name: [0, 0, 0] for name in steps}
        self.dropped: dict[str, Counter[str]] = {name: Counter() for name in steps}
        self.images_dropped: dict[str, Counter[str]] = {name: Counter() for name in steps}

    def flow(self, mark: dict[str, Any]) -> None:
        """Which steps the sample passed, with what it then held; what it lost there, and where it ended."""
        before = 0
        for step, images, chars, cuts in mark["flow"]:
            for i, n in enumerate((1, images, chars)):
                self.steps[step][i] += n
            self.images_dropped[step].update(c.reason for c in mark["cuts"][before:cuts])
            before = cuts
        if (fault := mark["fault"]) is not None:
            at = mark["at"]
            self.dropped[at][fault.reason] += 1
            self.images_dropped[at].update(c.reason for c in mark["cuts"][before:])
            if (sample := mark["sample"]) is not None and sample.media:
                self.images_dropped[at][fault.reason] += len(sample.media)

    def funnel(self, read: int, images_read: int) -> Funnel:
        return Funnel(
            read=read,
            written=self.written,
            dropped=_total(self.dropped),
            images_read=images_read,
            images_written=self.images_written,
            images_dropped=_total(self.images_dropped),
            steps=tuple(
                StepCount(
                    step=step,
                    samples=samples,
                    images=images,
                    text_chars=chars,
                    dropped=dict(sorted(self.dropped[step].items())),
                    images_dropped=dict(sorted(self.images_dropped[step].items())),
                )
                for step, (samples, images, chars) in self.steps.items()
            ),
        )


def _total(of_steps: dict[str, Counter[str]]) -> dict[str, int]:
    """The reasons of all steps together."""
    return dict(sorted(sum(of_steps.values(), Counter()).items()))


def _too_large(mark: dict[str, Any]) -> Fault | None:
    """No format can hold a row beyond the limit of Arrow's binary columns."""
    if (size := sample_bytes(mark["sample"])) <= MAX_SAMPLE_BYTES:
        return None
    detail = f"{size:,} bytes, a row holds at most {MAX_SAMPLE_BYTES:,}"
    return Fault(reason="sample too large", detail=detail, bad=False, file=mark["file"], where=mark["where"])
