"""Which reader opens which kind of source. A new kind is a model in recipe.py and a case here."""

from pathlib import Path

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
    source_path,
)


def open_reader(source: Source, root: Path, recipe: BuildRecipe) -> Reader:
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


def listing(readers: dict[str, Reader], *, times: bool) -> str:
    """The input files by name and size; with their times as well, to notice a repair of equal size."""
    lines = []
    for source, reader in readers.items():
        folder: Folder | None = getattr(reader, "folder", None)
        for path in reader.inputs():
            stat = path.stat()
            name = folder.name(path) if folder else path.name
            lines.append(f"{source}\t{name}\t{stat.st_size}" + (f"\t{stat.st_mtime_ns}" if times else ""))
    return "\n".join(lines)
