"""Paragraphs that many documents of one host share: cookie notes, calls to subscribe, lists of other pages.

They are counted over a whole source in a pass of its own, which reads the texts alone; then a step takes
them out of all documents but one. That one keeps a text which is boilerplate nowhere else, and of near
copies of a document, which share all their paragraphs, one stays whole.
"""

import functools
import mmap
import shutil
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_pipeline.build.dedup.groups import Groups, key
from data_pipeline.build.dedup.normal import normal
from data_pipeline.build.executor import Executor, Job
from data_pipeline.build.filter.paragraphs import split_paragraphs, without_paragraphs
from data_pipeline.build.read.reading import Reader
from data_pipeline.build.steps import Dropped, Kept, ReadSources, Step
from data_pipeline.manifest import commit
from data_pipeline.sample import Sample

# A paragraph's key and the number of its document: 24 bytes.
_RECORD = np.dtype([("key", "S16"), ("number", ">i8")])
_KEY, _SIZE = 16, _RECORD.itemsize
_BUFFERED = 2**16  # records
_PAGES = ("interleaved", "text")  # of a PDF page the text must stay what the page shows
_REASON = "repeated on its host"


@dataclass(frozen=True)
class Table:
    """The repeated paragraphs of a source in a sorted file: key, and the document that keeps it."""

    path: Path

    def is_made(self) -> bool:
        return self.path.exists()

    def make(self, reader: Reader, most: int, *, tasks: int, executor: Executor, work: Path) -> None:
        """Count, in `tasks` parts, what more than `most` documents of a host hold. What a killed run has
        counted is taken as it is. Memory does not grow with the source; `work` takes 48 bytes a paragraph."""
        work = work / self.path.name
        counted = work / "counted"
        counted.mkdir(parents=True, exist_ok=True)
        job = Job(
            name=f"fovea-{self.path.name}",
            pipeline=[ReadSources({"counted": reader}), _Count(counted)],
            tasks=tasks,
            logs=work / "logs",
            is_done=functools.partial(_is_counted, counted),
        )
        executor.run(job)
        files = [_counted_file(counted, rank) for rank in range(tasks)]
        with commit(self.path) as out:
            _write_repeated(files, most, work, out)
        shutil.rmtree(work)


class RepeatedParagraphs(Step):
    """Takes paragraphs that other documents of the host hold as well out of documents; see the module."""

    type = "filter"
    name = f"paragraph: {_REASON}"

    def __init__(self, tables: Mapping[str, Table]):
        super().__init__()
        self.tables = tables
        self._open: dict[str, mmap.mmap | bytes] = {}

    def judge(self, sample: Sample) -> Kept | Dropped:
        table = self.tables.get(sample.source)
        if table is None or sample.kind not in _PAGES:
            return Kept(sample)
        if (data := self._open.get(sample.source)) is None:
            data = self._open[sample.source] = _mapped(table.path)
        host, number = sample.domain or "", _number(sample)

        def refused(paragraph: str) -> str | None:
            keeper = _keeper(data, key(host, normal(paragraph)))
            return _REASON if keeper is not None and keeper != number else None

        return without_paragraphs(sample, refused, step=self.name, config=str(sorted(self.tables)))


class _Count(PipelineStep):
    """Writes a record for each paragraph of each document; the task's file is there when it is whole."""

    type = "count"
    name = "paragraphs by host"

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> None:
        with commit(_counted_file(self.folder, rank)) as f:
            for doc in data:
                sample: Sample | None = doc.metadata.get("sample")
                if sample is not None and sample.kind in _PAGES:
                    number = _number(sample).to_bytes(8, "big")
                    host = sample.domain or ""
                    # Of a paragraph that comes twice in a document one record is enough.
                    f.write(b"".join({key(host, normal(p)) + number for p in split_paragraphs(sample)}))


def _counted_file(folder: Path, rank: int) -> Path:
    return folder / f"{rank:05d}"


def _is_counted(folder: Path, rank: int) -> bool:
    return _counted_file(folder, rank).exists()


def _number(sample: Sample) -> int:
    """What a document says, as 63 bits: captures of one page are one document."""
    return (
        int.from_bytes(key(sample.domain or "", *(s.text for s in sample.segments if s.text))[:8], "big") >> 1
    )


def _write_repeated(files: Iterable[Path], most: int, work: Path, out: IO[bytes]) -> None:
    """The records of keys that more than `most` numbers have, with the least number, in order of the key."""
    groups = Groups(work / "groups")
    whole, count = work / "all", 0
    with whole.open("wb") as f:
        for file in files:
            for chunk in _chunks(file):
                f.write(chunk)
                for at in range(0, len(chunk), _SIZE):
                    groups.add(chunk[at : at + _KEY], count)
                    count += 1
    records = np.memmap(whole, _RECORD, "r") if count else np.empty(0, _RECORD)
    for group in groups.repeated():
        if len(group) > most and len(numbers := np.unique(records["number"][group])) > most:
            out.write(records[int(group[0])].tobytes()[:_KEY] + int(numbers[0]).to_bytes(8, "big"))


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as f:
        while chunk := f.read(_BUFFERED * _SIZE):
            yield chunk


def _mapped(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as f:
        return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""


def _keeper(table: mmap.mmap | bytes, wanted: bytes) -> int | None:
    """The number beside the key; None where the table has no such key."""
    count = len(table) // _SIZE
    at = _SIZE * bisect_left(range(count), wanted, key=lambda i: table[_SIZE * i : _SIZE * i + _KEY])
    if table[at : at + _KEY] != wanted:
        return None
    return int.from_bytes(table[at + _KEY : at + _SIZE], "big")
