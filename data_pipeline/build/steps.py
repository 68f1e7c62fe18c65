"""The first step: every unit of every source that falls to this task, read in a fixed order.

No step swallows a document. A step that refuses one marks it with a fault and passes it on; the writer
alone writes or counts it, so that what was read is what was written plus what was dropped.
"""

from collections.abc import Iterable, Iterator

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_pipeline.build.read.reading import Item, Reader


class ReadSources(PipelineStep):
    """Yields a document per item; after each source a marker with the number of items read of it."""

    type = "read"
    name = "sources"

    def __init__(self, readers: dict[str, Reader]):
        super().__init__()
        self.readers = readers

    def run(self, data: Iterable[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        if data:
            yield from data
        for source, reader in self.readers.items():
            read = 0
            for unit in reader.units()[rank::world_size]:
                for item in reader.read(unit):
                    read += 1
                    yield _document(source, item, read)
            yield Document(text=" ", id=f"{source}-end", metadata={"source": source, "read": read})


def _document(source: str, item: Item, number: int) -> Document:
    sample = item.sample
    return Document(
        # Steps of datatrove drop documents of no text; a picture without words is a sample too.
        text=(sample.text if sample else "") or " ",
        id=sample.id if sample else f"{source}-{number}",
        metadata={
            "sample": sample,
            "source": source,
            "file": item.file,
            "where": item.where,
            "fault": item.fault,
            "cuts": item.cuts,
        },
    )
