"""Interleaved documents in JSON: `sequence` of {text} and {image, alt, caption}."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.build.cut import Block, cut_document
from data_pipeline.build.read.documents import document_item
from data_pipeline.build.read.reading import Fault, Folder, Item
from data_pipeline.build.read.records import (
    Record,
    invalid,
    load_records,
    record_files,
    record_inputs,
    record_licence,
)
from data_pipeline.build.recipe import InterleavedSource

PATTERNS = ("*interleaved*.jsonl", "*interleaved*.json")


@dataclass(frozen=True)
class InterleavedReader:
    source: InterleavedSource
    path: Path
    folder: Folder
    heldout: float

    def inputs(self) -> list[Path]:
        return record_inputs(record_files(self.path, PATTERNS))

    def units(self) -> list[Record]:
        files = record_files(self.path, PATTERNS)
        return [r for f in files for r in load_records(f, self.folder.name(f))]

    def read(self, unit: Record) -> Iterator[Item]:
        if isinstance(unit.value, Fault):
            yield Item.failed(unit.value)
            return
        sequence = unit.value.get("sequence")
        if not isinstance(sequence, list) or not all(isinstance(e, dict) for e in sequence):
            yield Item.failed(
                invalid(unit, "expected `sequence`: a list of {text} and {image, alt, caption}")
            )
            return
        runs = cut_document(
            self._blocks(unit, sequence),
            max_chars=self.source.max_chars,
            max_images=self.source.max_images,
            heldout=self.heldout,
        )
        for n, blocks in enumerate(runs):
            yield document_item(
                blocks,
                source=self.source.name,
                file=unit.file,
                where=f"{unit.where}, part {n}",
                licence=record_licence(unit, self.source.license),
                min_chars=self.source.min_chars,
                step="read_interleaved",
            )

    def _blocks(self, record: Record, sequence: list[dict]) -> Iterator[Block]:
        assert isinstance(record.value, dict)
        if record.value.get("title"):
            yield Block(text=str(record.value["title"]), heading=True)
        base = record.path.parent
        for element in sequence:
            if element.get("image"):
                found = self.folder.picture(
                    str(element["image"]),
                    (base, base / "images"),
                    record.file,
                    record.where,
                    element.get("alt"),
                )
                yield Block(cut=found) if isinstance(found, Fault) else Block(picture=found)
                if element.get("caption"):
                    yield Block(text=str(element["caption"]).strip())
            elif str(element.get("text") or "").strip():
                yield Block(text=str(element["text"]).strip())
