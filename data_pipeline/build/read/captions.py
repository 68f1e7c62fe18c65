"""Images with captions: one sample per image, one text segment per caption."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.build.read.reading import Fault, Folder, Item
from data_pipeline.build.read.records import (
    Record,
    invalid,
    load_records,
    record_files,
    record_inputs,
    record_licence,
    record_picture,
)
from data_pipeline.build.recipe import CaptionsSource
from data_pipeline.sample import Sample, Segment, content_id

PATTERNS = ("*caption*.json", "*caption*.jsonl")


@dataclass(frozen=True)
class CaptionsReader:
    source: CaptionsSource
    path: Path
    folder: Folder

    def inputs(self) -> list[Path]:
        return record_inputs(record_files(self.path, PATTERNS))

    def units(self) -> list[Record]:
        files = record_files(self.path, PATTERNS)
        return [r for f in files for r in load_records(f, self.folder.name(f))]

    def read(self, unit: Record) -> Iterator[Item]:
        yield self._item(unit)

    def _item(self, record: Record) -> Item:
        if isinstance(record.value, Fault):
            return Item.failed(record.value)
        texts = _texts(record.value)
        alt = next((text for role, text in texts if role == "alt"), None)
        picture = record_picture(record, self.folder, alt)
        if picture is None:
            return Item.failed(invalid(record, "no image: expected one of file, image, image_name, path"))
        if isinstance(picture, Fault):
            return Item.failed(picture)
        if not texts:
            return Item.failed(invalid(record, "no text: expected one of caption, captions, alt"))
        sample = Sample(
            id=content_id(
                self.source.name, record.file, record.where, picture.media.media_id, *sum(texts, ())
            ),
            kind="caption",
            source=self.source.name,
            url=record.file,
            license=record_licence(record, self.source.license),
            segments=(
                Segment(type="image", media=0),
                *(Segment(type="text", text=text, role=role) for role, text in texts),
            ),
            media=(picture.media,),
            image_bytes=(picture.data,),
        )
        return Item(file=record.file, where=record.where, sample=sample)


def _texts(record: dict) -> list[tuple[str, str]]:
    """(role, text) of every caption: written ones are `recaption`, the page's alt text is `alt`."""
    written = record.get("captions") or []
    written = [written] if isinstance(written, str) else list(written)
    if record.get("caption"):
        written.insert(0, record["caption"])
    found = [("recaption", str(t).strip()) for t in written]
    if record.get("alt"):
        found.append(("alt", str(record["alt"]).strip()))
    return [(role, text) for role, text in found if text]
