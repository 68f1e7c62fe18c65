"""Records in files: a JSON list, JSON Lines, or COCO. A broken line costs that line, not the file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from data_pipeline.build.read.reading import IMAGE_SUFFIXES, Fault, Folder, Picture, files_below

IMAGE_KEYS = ("file", "image", "image_name", "file_name", "path")
SUFFIXES = (".json", ".jsonl")


@dataclass(frozen=True)
class Record:
    """One record of a file; `value` is a Fault where it is not JSON, or no mapping."""

    path: Path
    file: str
    where: str
    value: dict[str, Any] | Fault


def record_files(path: Path, patterns: Sequence[str]) -> list[Path]:
    """The file itself, or the folder's JSON files whose names match one of the patterns."""
    if path.is_file():
        return [path]
    return [p for p in files_below(path, SUFFIXES) if any(fnmatch(p.name.lower(), g) for g in patterns)]


def load_records(path: Path, file: str) -> list[Record]:
    """Every record of the file, with the place to name in messages."""

    def record(where: str, value: Any) -> Record:
        if not isinstance(value, dict):
            return broken(where, f"expected a mapping, found {type(value).__name__}")
        return Record(path, file, where, value)

    def broken(where: str, detail: str) -> Record:
        fault = Fault(reason="invalid record", detail=detail, bad=True, file=file, where=where)
        return Record(path, file, where, fault)

    def parse(where: str, text: str) -> Record:
        try:
            return record(where, json.loads(text))
        except (ValueError, RecursionError) as e:
            return broken(where, f"not JSON: {e}")

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        return [broken("file", f"not a UTF-8 text file: {e}")]
    if path.suffix.lower() == ".jsonl":
        return [parse(f"line {i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        values = _coco_records(json.loads(text))
    except (ValueError, RecursionError) as e:
        return [broken("file", f"not JSON: {e}")]
    if not isinstance(values, list):
        return [broken("file", f"expected a list of records, found {type(values).__name__}")]
    return [record(f"record {i}", v) for i, v in enumerate(values)]


def _coco_records(page: Any) -> Any:
    """COCO's own caption files: `images` and `annotations` joined, a record per image. Else the page."""
    if not isinstance(page, dict):
        return page
    images, annotations = page.get("images"), page.get("annotations")
    if not (isinstance(images, list) and isinstance(annotations, list)):
        return page
    captions: dict[Any, list[Any]] = {}
    for a in annotations:
        if isinstance(a, dict) and a.get("caption"):
            captions.setdefault(a.get("image_id"), []).append(a["caption"])
    licences = {x.get("id"): x for x in page.get("licenses") or [] if isinstance(x, dict)}
    return [
        {**i, "captions": captions.get(i.get("id"), []), "license": licences.get(i.get("license"))}
        if isinstance(i, dict)
        else i
        for i in images
    ]


def record_picture(record: Record, folder: Folder, alt: str | None = None) -> Picture | Fault | None:
    """The record's image, beside the file or in `images/` beside it. None where the record names none."""
    assert isinstance(record.value, dict)
    reference = next((record.value[k] for k in IMAGE_KEYS if record.value.get(k)), None)
    if reference is None:
        return None
    base = record.path.parent
    return folder.picture(str(reference), (base, base / "images"), record.file, record.where, alt)


def record_inputs(files: Sequence[Path]) -> list[Path]:
    """The files and the images that their records may name: what the result depends on."""
    folders = {p.parent for p in files} | {p.parent / "images" for p in files}
    images = [p for d in folders if d.is_dir() for p in d.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
    return [*files, *sorted({p for p in images if p.is_file()})]


def invalid(record: Record, detail: str) -> Fault:
    return Fault(reason="invalid record", detail=detail, bad=True, file=record.file, where=record.where)


def record_licence(record: Record, default: str | None) -> str | None:
    """The record's own licence, as text or as {name, url}; else the source's."""
    assert isinstance(record.value, dict)
    own = record.value.get("license")
    if isinstance(own, dict):
        own = " ".join(str(own[k]) for k in ("name", "url") if own.get(k))
    return str(own) if own else default
