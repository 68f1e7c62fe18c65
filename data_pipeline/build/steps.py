"""What a step of the build is, and the first one: every unit of every source that falls to this task.

No step swallows a document. A step that refuses one marks it with a fault and passes it on; the writer
alone writes or counts it, so that what was read is what was written plus what was dropped.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_pipeline.build.read.reading import Fault, Item, Reader
from data_pipeline.sample import Sample


@dataclass(frozen=True)
class Cut:
    """An image that leaves its document. `media` is its number in the sample that the step was given."""

    media: int
    reason: str
    detail: str
    bad: bool = False


@dataclass(frozen=True)
class Kept:
    """The sample goes on, changed or not; `cuts` are the images that a step took out of it."""

    sample: Sample
    cuts: tuple[Cut, ...] = ()


@dataclass(frozen=True)
class Dropped:
    """The sample ends here, for a short, closed `reason`. `media`: the image that is at fault, if one is."""

    reason: str
    detail: str
    bad: bool = False
    media: int | None = None


class Step(PipelineStep):
    """One step over samples: `judge` says what becomes of a sample that is sound so far."""

    type = "step"

    @abstractmethod
    def judge(self, sample: Sample) -> Kept | Dropped: ...

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for doc in data:
            mark = doc.metadata
            if "read" not in mark and mark["fault"] is None:
                before: Sample = mark["sample"]
                match self.judge(before):
                    case Kept(sample, cuts):
                        mark["sample"] = sample
                        mark["cuts"] = (*mark["cuts"], *(_fault(c, before, mark) for c in cuts))
                        record(mark, self.name)
                    case Dropped() as dropped:
                        mark["fault"] = _fault(dropped, before, mark)
                        mark["at"] = self.name
            yield doc


def record(mark: dict[str, Any], step: str) -> None:
    """Note that the sample passed `step`, with what it then holds and how many images it has lost so far."""
    sample: Sample = mark["sample"]
    chars = sum(len(s.text) for s in sample.segments if s.text)
    mark["flow"] = (*mark["flow"], (step, len(sample.media), chars, len(mark["cuts"])))


def _fault(found: Cut | Dropped, sample: Sample, mark: dict[str, Any]) -> Fault:
    """What a step found, with the place to name: the image's own file or address where it is about one."""
    url = None if found.media is None else sample.media[found.media].url
    where = mark["where"] if url in (None, mark["file"]) else f"{mark['file']}, {mark['where']}"
    return Fault(
        reason=found.reason,
        detail=found.detail,
        bad=found.bad,
        file=url or mark["file"],
        where=where,
        image=sample.image_bytes[found.media] if isinstance(found, Cut) else None,
    )


class ReadSources(PipelineStep):
    """Yields a document per item; after each source a marker with the number of items read of it."""

    type = "read"
    name = "read"

    def __init__(self, readers: dict[str, Reader]):
        super().__init__()
        self.readers = readers

    def run(self, data: Iterable[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        if data:
            yield from data
        for source, reader in self.readers.items():
            read = images = 0
            for unit in reader.units()[rank::world_size]:
                for item in reader.read(unit):
                    read += 1
                    images += len(item.cuts) + (len(item.sample.media) if item.sample else 0)
                    yield _document(source, item, read)
            mark = {"source": source, "read": read, "images_read": images}
            yield Document(text=" ", id=f"{source}-end", metadata=mark)


def _document(source: str, item: Item, number: int) -> Document:
    sample = item.sample
    mark = {
        "sample": sample,
        "source": source,
        "file": item.file,
        "where": item.where,
        "fault": item.fault,
        "cuts": item.cuts,
        "flow": (),
        "at": ReadSources.name,
    }
    if item.fault is None:
        record(mark, ReadSources.name)
    # Steps of datatrove drop documents of no text; a picture without words is a sample too.
    return Document(
        text=(sample.text if sample else "") or " ",
        id=sample.id if sample else f"{source}-{number}",
        metadata=mark,
    )
