"""The PDF files of a source, each in the process that a page may end."""

from collections.abc import Iterator
from dataclasses import dataclass

from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.pdf import MAX_FILE_BYTES, SUFFIXES, PdfOptions
from data_pipeline.build.read.pdf_apart import read_pdf
from data_pipeline.build.read.reading import Fault, Item, Stamp


@dataclass(frozen=True)
class PdfReader:
    """Every page of every file below `tree` is a sample of the source `name`."""

    name: str
    license: str | None
    tree: Tree
    options: PdfOptions

    def inputs(self) -> list[Stamp]:
        return [self.tree.stamp(name) for name in self.units()]

    def units(self) -> list[str]:
        return self.tree.files(SUFFIXES)

    def read(self, unit: str) -> Iterator[Item]:
        data = self.tree.read(unit, MAX_FILE_BYTES)
        if isinstance(data, Fault):
            yield Item.failed(data)
            return
        yield from read_pdf(data, unit, source=self.name, licence=self.license, options=self.options)
