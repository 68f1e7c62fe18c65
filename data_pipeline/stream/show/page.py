"""One static HTML page with packed rows as they enter the model: pictures with their patches, tokens by
document and by loss, and who sees whom.

Everything shown is read back from the tensors of a batch, not from the samples. What stands in them was
written by others: all of it is escaped, and the page may load and run nothing.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_pipeline.batch import PAD_DOCUMENT, Batch
from data_pipeline.image_spec import SPLIT_TILES
from data_pipeline.stream.rows import Row
from data_pipeline.stream.show.chips import Chip, Document, crossings, read_row, wrong_labels
from data_pipeline.stream.show.pictures import COLOURS, Tile, mask_picture, tile
from data_pipeline.stream.tokens import Tokenizer


@dataclass(frozen=True)
class Origin:
    """Where a document of a row comes from. `split`: its pictures are five tiles each."""

    source: str
    split: bool = False
    part: int = 0  # of its sample, from 0
    epoch: int = 0


@dataclass(frozen=True, eq=False)
class PackedRow:
    """Row `number` of a batch. `mask` bool[T, T]: may the first position attend to the second?"""

    batch: Batch
    number: int
    mask: np.ndarray
    origins: Sequence[Origin]


@dataclass(frozen=True, kw_only=True)
class Step:
    """The step that the rows are of. `rows`: its whole global batch as planned, on all ranks."""

    recipe: str
    stage: str
    number: int
    rows: Sequence[Row]
    sequence_length: int
    skipped: Mapping[str, int]  # reason -> count, of the windows that begin in this step


def rows_page(rows: Iterable[PackedRow], tokenizer: Tokenizer, step: Step) -> str:
    """The page. Rows are looked at one by one, so that a generator holds one mask at a time.

    Raises ValueError where a row's origins are not as many as its documents, or its mask has another size.
    """
    # Only this one folder's template is ever loaded; autoescape is on for all of it.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    shown = [_row(row, tokenizer) for row in rows]
    return environment.get_template("page.html.j2").render(
        step=step, rows=shown, planned=_planned(step), sources=_sources(step, shown), colours=len(COLOURS)
    )


def visible(text: str) -> str:
    """Text with every character seen: the ends of lines marked, and spelt out what has no shape or turns the
    writing around.
    """
    return "".join(_SHOWN.get(c) or (c if _has_shape(c) else f"⟨U+{ord(c):04X}⟩") for c in text)


_SHOWN = {"\n": "↵\n", "\t": "⇥\t", "\u200d": "\u200d"}  # the last joins emoji


def _has_shape(c: str) -> bool:
    return unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _planned(step: Step) -> dict[str, Any]:
    placed = [p for row in step.rows for p in row]
    tokens = sum(p.tokens for p in placed)
    return {
        "rows": len(step.rows),
        "documents": len(placed),
        "tokens": tokens,
        "fill": tokens / max(1, len(step.rows) * step.sequence_length),
        "images": sum(p.images for p in placed),
        "patches": sum(p.patches for p in placed),
    }


def _sources(step: Step, shown: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per source: what it gives to the global batch, and to the targets of the rows that are shown."""
    total = max(1, sum(p.tokens for row in step.rows for p in row))
    targets: dict[str, int] = {}
    for document in (d for row in shown for d in row["documents"]):
        targets[document["origin"].source] = targets.get(document["origin"].source, 0) + document["targets"]
    found = []
    for name in sorted({p.source for row in step.rows for p in row} | set(targets)):
        mine = [p for row in step.rows for p in row if p.source == name]
        tokens = sum(p.tokens for p in mine)
        found.append(
            {
                "name": name,
                "documents": len(mine),
                "tokens": tokens,
                "share": tokens / total,
                "images": sum(p.images for p in mine),
                "patches": sum(p.patches for p in mine),
                "targets": targets.get(name, 0),
            }
        )
    return sorted(found, key=lambda s: -s["tokens"])


def _row(row: PackedRow, tokenizer: Tokenizer) -> dict[str, Any]:
    batch, read = row.batch, read_row(row.batch, row.number, tokenizer)
    real = [d for d in read if d.number != PAD_DOCUMENT]
    if len(real) != len(row.origins):
        raise ValueError(f"{len(row.origins)} origins for {len(real)} documents of row {row.number}")
    length = batch.input_ids.shape[1]
    crossed = crossings(batch, row.number, row.mask)
    tokens = sum(d.tokens for d in real)
    names = batch.sample_ids[row.number]
    documents = [
        _document(batch, d, name, origin) for d, name, origin in zip(real, names, row.origins, strict=True)
    ]
    return {
        "length": length,
        "tokens": tokens,
        "fill": tokens / length,
        "padding": length - tokens,
        "targets": sum(d.targets for d in real),
        "images": sum(len(d.images) for d in real),
        "patches": sum(d["patches"] for d in documents),
        "documents": documents,
        "mask": mask_picture(row.mask, batch.document_ids[row.number].numpy()),
        "crossings": crossed,
        "wrong_labels": wrong_labels(batch, row.number),
    }


def _document(batch: Batch, document: Document, name: str, origin: Origin) -> dict[str, Any]:
    return {
        "id": name,
        "origin": origin,
        "number": document.number,
        "colour": (document.number - 1) % len(COLOURS),
        "tokens": document.tokens,
        "targets": document.targets,
        "images": len(document.images),
        "patches": sum(rows * columns for rows, columns in (batch.grids[n] for n in document.images)),
        "parts": _parts(batch, document, SPLIT_TILES if origin.split else 1),
    }


def _parts(batch: Batch, document: Document, tiles: int) -> list[tuple[str, Any]]:
    """("chips", [...]) and ("pictures", [...]) in turns: a picture stands behind the tokens around it, and
    beside its neighbours. A picture is a list of its tiles.
    """
    parts: list[tuple[str, Any]] = []
    chips: list[tuple[Chip, Tile | None]] = []
    waiting: list[Tile] = []
    for chip in document.chips:
        if waiting and chip.kind == "text":
            parts += [("chips", chips), ("pictures", _together(waiting, tiles))]
            chips, waiting = [], []
        seen = None if chip.image is None else tile(batch, chip.image)
        chips.append((chip, seen))
        waiting += [seen] if seen else []
    parts.append(("chips", chips))
    return parts + ([("pictures", _together(waiting, tiles))] if waiting else [])


def _together(found: Sequence[Tile], tiles: int) -> list[Sequence[Tile]]:
    return [found[n : n + tiles] for n in range(0, len(found), tiles)]
