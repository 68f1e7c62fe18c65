"""A folder of documents, as it lies, as a recipe: what is read, and which files nothing reads."""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_pipeline.build.read import html, pdf
from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.reading import IMAGE_SUFFIXES
from data_pipeline.build.read.row_reader import PATTERNS, references
from data_pipeline.build.read.rows.containers import read_rows
from data_pipeline.build.read.rows.row import Unit
from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.errors import ConfigError
from data_pipeline.page import apply_overrides

# In this order: `captions_interleaved.jsonl` is interleaved, `captions_qa.json` is captions.
_RECORDS = {kind: PATTERNS[kind] for kind in ("interleaved", "captions", "questions")}
_DOCUMENTS = {"html": html.SUFFIXES, "pdf": pdf.SUFFIXES}
_ABOUT = ("readme*", "licen[cs]e*", "notice*", "origin*", "copying*", ".*")


def discover(folder: Path, overrides: Sequence[str] = ()) -> tuple[BuildRecipe, tuple[str, ...]]:
    """The recipe of all that is readable below `folder`, and the files that nothing reads."""
    folder = folder.resolve()
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.as_posix())
    sources: dict[tuple[str, str], dict[str, Any]] = {}
    claimed: set[Path] = set()
    for path in files:
        if (kind := _kind(path)) is None:
            continue
        claimed.add(path)
        top = path.relative_to(folder).parts[0] if path.parent != folder else ""
        # Records are a source per file, documents one per top-level folder.
        place = path if kind in _RECORDS else folder / top
        sources.setdefault(
            (kind, place.as_posix()), {"kind": kind, "top": top or folder.name, "place": place}
        )
    if not sources:
        raise ConfigError(
            f"{folder}: nothing to read below this folder.\n"
            "  Read are *.html, *.pdf, captions.json, qa.json or questions.json, interleaved.jsonl"
        )
    claimed |= _images_of(sources.values(), files, folder)
    page: dict[str, Any] = {
        "name": _word(folder.name),
        "sources": [
            {"name": name, "kind": s["kind"], "path": s["place"].relative_to(folder).as_posix()}
            for name, s in _named(list(sources.values()))
        ],
    }
    apply_overrides(page, list(overrides))
    try:
        recipe = BuildRecipe.model_validate(page)
    except ValidationError as e:
        faults = [f"  {'.'.join(map(str, f['loc']))}: {f['msg']}" for f in e.errors()]
        raise ConfigError("overrides do not fit:\n" + "\n".join(faults)) from None
    rest = (p.relative_to(folder) for p in files if p not in claimed)
    return recipe, tuple(p.as_posix() for p in rest if not _is_about(p))


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    for kind, suffixes in _DOCUMENTS.items():
        if path.suffix.lower() in suffixes and not path.is_symlink():
            return kind
    for kind, patterns in _RECORDS.items():
        if any(fnmatch(name, p) for p in patterns):
            return kind
    return None


def _named(sources: list[dict[str, Any]]) -> Iterable[tuple[str, dict[str, Any]]]:
    """`<top folder>-<kind>`, with the file's stem (then a number) where that comes twice."""
    taken: set[str] = set()
    short: Callable[[dict[str, Any]], str] = lambda s: _word(f"{s['top']}-{s['kind']}")  # noqa: E731
    for source in sources:
        twice = sum(short(s) == short(source) for s in sources) > 1
        name = f"{short(source)}-{_word(source['place'].stem)}" if twice else short(source)
        number = 2
        while name in taken:
            name = f"{short(source)}-{number}"
            number += 1
        taken.add(name)
        yield name, source


def _images_of(sources: Iterable[dict[str, Any]], files: list[Path], folder: Path) -> set[Path]:
    """Images that a source reads: those its records name, and all that lie below its HTML pages."""
    found: set[Path] = set()
    for source in sources:
        place: Path = source["place"]
        if source["kind"] == "html":
            found |= {p for p in files if p.suffix.lower() in IMAGE_SUFFIXES and p.is_relative_to(place)}
        elif source["kind"] in _RECORDS:
            for row in read_rows(Tree.at(place), Unit(place.name)):
                candidates = ((place.parent / name).resolve() for name in references(row))
                found |= {c for c in candidates if c.is_relative_to(folder)}
    return found


def _is_about(path: Path) -> bool:
    return any(fnmatch(path.name.lower(), pattern) for pattern in _ABOUT)


def _word(name: str) -> str:
    """`name` with the characters that a source's name may have."""
    word = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in name).lstrip("_-")
    return word or "documents"
