"""A folder of documents, as it lies, as a recipe: what is read, and which files nothing reads.

What a file of records holds is told by its name, else by the keys of its first row.
"""

import glob
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_pipeline.build.directory import IDENTITY
from data_pipeline.build.read import html, pdf, warc
from data_pipeline.build.read.files import Tree, spelled
from data_pipeline.build.read.reading import IMAGE_SUFFIXES, Fault
from data_pipeline.build.read.row_reader import PATTERNS, kind_of, references
from data_pipeline.build.read.rows.containers import STATE, container_of, describes_others, read_rows
from data_pipeline.build.read.rows.row import Row, Unit
from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.errors import ConfigError
from data_pipeline.page import apply_overrides

# In this order: `captions_interleaved.jsonl` is interleaved, `captions_qa.json` is captions.
_RECORDS = ("interleaved", "captions", "questions")
_DOCUMENTS = {"html": html.SUFFIXES, "pdf": pdf.SUFFIXES, "warc": warc.SUFFIXES}
_ABOUT = ("readme*", "licen[cs]e*", "notice*", "origin*", "copying*", ".*")
_FIRST = 8  # rows that are looked at to know what a file holds
_NAMING = 1000  # rows whose pictures are listed one by one


@dataclass(frozen=True)
class _Found:
    """A source: `place` with all that its kind reads below it, or with the `files` of that pattern only."""

    kind: str
    place: Path
    members: tuple[Path, ...]
    files: str | None = None


def discover(folder: Path, overrides: Sequence[str] = ()) -> tuple[BuildRecipe, tuple[str, ...]]:
    """The recipe of all that is readable below `folder`, and the files that nothing reads.

    Datasets that were built before are no documents: their files count as unread.
    """
    folder = folder.resolve()
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.as_posix())
    built = {p.parent for p in files if p.name == IDENTITY}
    raw = [p for p in files if built.isdisjoint(p.parents)]
    sources = [*_documents(raw, folder), *_records(raw, folder)]
    if not sources:
        raise ConfigError(
            f"{folder}: nothing to read below this folder.\n"
            "  Read are *.html, *.pdf, *.warc, *.arc, and records in JSON (captions.json, qa.json,\n"
            "  interleaved.jsonl, or lines of known keys), CSV, tar, Parquet and Arrow files"
        )
    page: dict[str, Any] = {
        "name": _word(folder.name),
        "sources": [
            {"name": name, "kind": s.kind, "path": spelled(s.place.relative_to(folder).as_posix())}
            | ({"files": s.files} if s.files else {})
            for name, s in _named(sources, folder)
        ],
    }
    apply_overrides(page, list(overrides))
    try:
        recipe = BuildRecipe.model_validate(page)
    except ValidationError as e:
        faults = [f"  {'.'.join(map(str, f['loc']))}: {f['msg']}" for f in e.errors()]
        raise ConfigError("overrides do not fit:\n" + "\n".join(faults)) from None
    claimed = {p for s in sources for p in s.members} | _images_of(sources, raw, folder)
    present = {p.relative_to(folder).as_posix() for p in files}
    rest = [p for p in files if p not in claimed and not _is_about(p)]
    names = (p.relative_to(folder).as_posix() for p in rest)
    return recipe, tuple(spelled(n) for n in names if not describes_others(n, present))


def _documents(files: Sequence[Path], folder: Path) -> Iterator[_Found]:
    """Documents are a source per top-level folder, and one in all where some lie in `folder` itself."""
    for kind, suffixes in _DOCUMENTS.items():
        mine = [p for p in files if p.name.lower().endswith(suffixes) and not p.is_symlink()]
        tops = {_top(p, folder) for p in mine}
        for top in [folder] if folder in tops else sorted(tops):
            yield _Found(kind, top, tuple(p for p in mine if p.is_relative_to(top)))


def _records(files: Sequence[Path], folder: Path) -> Iterator[_Found]:
    """Records are a source per file; files whose names differ in numbers alone are parts of one source.

    A link is no record: it may lead to any file of this machine. Whoever wants it read names it in a recipe.
    """
    present = {p.relative_to(folder).as_posix() for p in files}
    saved = {p.parent for p in files if p.name == STATE}
    groups: dict[tuple[Path, str], list[Path]] = {}
    for path in files:
        about = describes_others(path.relative_to(folder).as_posix(), present)
        if about or path.is_symlink() or container_of(path.name) is None:
            continue
        pattern = "*.arrow" if path.parent in saved and path.suffix == ".arrow" else _pattern(path.name)
        groups.setdefault((path.parent, pattern), []).append(path)
    for (place, pattern), members in groups.items():
        kind = next(filter(None, map(_kind, members)), None)
        if kind is None:
            continue
        if pattern == "*.arrow" and place in saved:  # its state lists the files
            yield _Found(kind, place, tuple(members))
        elif len(members) > 1 and _matching(files, place, pattern) == members:
            yield _Found(kind, place, tuple(members), pattern)
        else:
            yield from (_Found(kind, p, (p,)) for p in members)


def _pattern(name: str) -> str:
    """`train-00000-of-00012.parquet` is one of `train-*-of-*.parquet`."""
    return "*".join(glob.escape(part) for part in re.split(r"\d+", name))


def _matching(files: Sequence[Path], place: Path, pattern: str) -> list[Path]:
    """What a source at `place` would read by that pattern, as `row_files` understands it."""
    below = (p for p in files if p.is_relative_to(place) and not p.is_symlink())
    return [p for p in below if fnmatch(p.name, pattern) or fnmatch(p.relative_to(place).as_posix(), pattern)]


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    by_name = next((k for k in _RECORDS if any(fnmatch(name, p) for p in PATTERNS[k])), None)
    if by_name is not None:
        return by_name
    rows = itertools.islice(_rows(path), _FIRST)
    return next((kind_of(row) for row in rows if not isinstance(row.value, Fault)), None)


def _rows(path: Path) -> Iterator[Row]:
    return read_rows(Tree.at(path), Unit(path.name))


def _named(sources: Sequence[_Found], folder: Path) -> Iterator[tuple[str, _Found]]:
    """`<top folder>-<kind>`, with the file's stem (then a number) where that comes twice."""
    short = [_word(f"{_top(s.members[0], folder).name}-{s.kind}") for s in sources]
    taken: set[str] = set()
    for source, name in zip(sources, short, strict=True):
        stem = source.files or source.place.name
        first = name if short.count(name) == 1 else f"{name}-{_word(stem.split('.')[0].replace('*', ''))}"
        numbered = (f"{name}-{n}" for n in itertools.count(2))
        unique = next(n for n in itertools.chain([first], numbered) if n not in taken)
        taken.add(unique)
        yield unique, source


def _images_of(sources: Iterable[_Found], files: Sequence[Path], folder: Path) -> set[Path]:
    """Images that a source reads: those its records name, and all that lie below its HTML pages."""
    images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    found: set[Path] = set()
    for source in sources:
        if source.kind == "html":
            found |= {p for p in images if p.is_relative_to(source.place)}
        elif source.kind in _RECORDS:
            found |= {p for p in _named_images(source, images) if p.is_relative_to(folder)}
    return found


def _named_images(source: _Found, images: Sequence[Path]) -> set[Path]:
    """Of many records the first ones tell in which folders their pictures lie."""
    found: set[Path] = set()
    for n, row in enumerate(itertools.chain.from_iterable(map(_rows, source.members))):
        if n == _FIRST and not found:  # they carry their pictures in themselves
            break
        if n == _NAMING:
            folders = {p.parent for p in found if p.is_file()}
            return found | {p for p in images if p.parent in folders}
        found |= {(source.members[0].parent / name).resolve() for name in references(row)}
    return found


def _top(path: Path, folder: Path) -> Path:
    """The top-level folder where a file lies, or `folder` itself."""
    return folder if path.parent == folder else folder / path.relative_to(folder).parts[0]


def _is_about(path: Path) -> bool:
    return any(fnmatch(path.name.lower(), pattern) for pattern in _ABOUT)


def _word(name: str) -> str:
    """`name` with the characters that a source's name may have."""
    word = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in name).lstrip("_-")
    return word or "documents"
