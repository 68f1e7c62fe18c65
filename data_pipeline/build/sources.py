"""Which reader opens which kind of source. A new kind is a model in recipe.py and a case here."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from data_pipeline.build.read import html, pdf, warc
from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.html import HtmlReader
from data_pipeline.build.read.pdf_files import PdfReader
from data_pipeline.build.read.reading import Reader
from data_pipeline.build.read.row_reader import RowReader
from data_pipeline.build.read.scenes import ScenesReader
from data_pipeline.build.read.source import FileSource
from data_pipeline.build.read.warc import WarcReader, WarcSource
from data_pipeline.build.recipe import (
    BuildRecipe,
    CaptionsSource,
    HtmlSource,
    InterleavedSource,
    PdfSource,
    QuestionsSource,
    ScenesSource,
    Source,
)
from data_pipeline.build.synthesize.reader import SyntheticReader
from data_pipeline.build.synthesize.source import SyntheticSource
from data_pipeline.errors import ConfigError, DataError


def open_reader(
    source: Source, recipe: BuildRecipe, *, root: Path, directory: Path, endpoints: Mapping[str, str]
) -> Reader:
    """The reader of a source. Relative paths count from `root`; what readers keep goes below `directory`.

    Raises ConfigError where the source's path leads nowhere, DataError where it holds no file of the kind,
    before anything is read.
    """
    if isinstance(source, ScenesSource):
        return ScenesReader(source)
    if isinstance(source, SyntheticSource):
        cache = directory / "cache" / f"{source.name}.sqlite"
        return SyntheticReader(source, (root / source.path).resolve(), cache, endpoints.get(source.name))
    tree = _tree(source, recipe, root)
    match source:
        case HtmlSource():
            _expect_files(source, tree, html.SUFFIXES)
            return HtmlReader(source.name, source.license, tree)
        case WarcSource():
            _expect_files(source, tree, warc.SUFFIXES)
            return WarcReader(source, tree, directory / "cache", keep_missing=recipe.fetch is not None)
        case InterleavedSource() | CaptionsSource() | QuestionsSource():
            return RowReader(source.name, source.kind, source.license, tree, source)
        case PdfSource():
            _expect_files(source, tree, pdf.SUFFIXES)
            return PdfReader(source.name, source.license, tree, source)


def _tree(source: FileSource, recipe: BuildRecipe, root: Path) -> Tree:
    try:
        return Tree.at(
            source.path, root, max_bytes=recipe.images.max_bytes, keep_remote=recipe.fetch is not None
        )
    except ConfigError as e:
        raise ConfigError(
            f"source '{source.name}': {e}\n"
            f"  Correct its `path` in the recipe ('{source.path}', counted from {root}),\n"
            f"  or say where the inputs are:  fovea data build RECIPE --inputs DIR"
        ) from None


def _expect_files(source: FileSource, tree: Tree, suffixes: Sequence[str]) -> None:
    """A wrong folder is said at once: a dataset of nothing would be found out much later."""
    try:
        found = tree.files(suffixes)
    except OSError as e:
        raise DataError(f"source '{source.name}' cannot be listed: {e}") from None
    if not found:
        wanted = f"names that end in {', '.join(suffixes)}"
        raise DataError(
            f"source '{source.name}': no file to read below {tree.root}; read are {wanted}\n"
            "  Correct its `path` in the recipe, or say where the inputs are:  --inputs DIR"
        )


def expect_apart(readers: dict[str, Reader], directory: Path) -> None:
    """Refuses a source that would find the build's own pages and shards among its files."""
    for name, reader in readers.items():
        if isinstance(reader, HtmlReader | RowReader) and reader.tree.is_local and reader.tree.only is None:
            root = Path(reader.tree.root)
            if directory.is_relative_to(root):
                raise ConfigError(
                    f"{directory} lies inside {root}, where source '{name}' reads:\n"
                    "  it would read what it writes.\n"
                    "  Choose another --out, or a `path` that does not hold it"
                )


def listing(readers: dict[str, Reader], *, versions: bool) -> str:
    """The input files by name and size; with their versions as well, to notice a repair of equal size."""
    return "\n".join(
        f"{source}\t{s.name}\t{s.size}" + (f"\t{s.version}" if versions else "")
        for source, reader in readers.items()
        for s in reader.inputs()
    )


def passed_over(readers: dict[str, Reader]) -> tuple[str, ...]:
    """Files among those of a source that may hold rows and that no source reads: to be said to the user."""
    rows = [reader for reader in readers.values() if isinstance(reader, RowReader)]
    read = {reader.place(stamp.name) for reader in rows for stamp in reader.inputs()}
    found = {reader.place(name): name for reader in rows for name in reader.passed_over()}
    return tuple(sorted(name for place, name in found.items() if place not in read))
