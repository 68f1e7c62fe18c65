"""Questions and dialogues about images: one sample per record, as turns of a user and an assistant."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.build.read.reading import Fault, Folder, Item, as_json
from data_pipeline.build.read.records import (
    IMAGE_KEYS,
    Record,
    invalid,
    load_records,
    record_files,
    record_inputs,
    record_licence,
    record_picture,
)
from data_pipeline.build.recipe import QuestionsSource
from data_pipeline.sample import Sample, Segment, content_id

PATTERNS = (
    "*qa*.json",
    "*qa*.jsonl",
    "*question*.json",
    "*question*.jsonl",
    "*dialog*.json",
    "*dialog*.jsonl",
)
_TAKEN = {*IMAGE_KEYS, "question", "answer", "turns", "license"}


@dataclass(frozen=True)
class QuestionsReader:
    source: QuestionsSource
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
        turns = _turns(record.value)
        if not turns:
            return Item.failed(invalid(record, "expected `question` and `answer`, or `turns`: [[q, a], ...]"))
        picture = record_picture(record, self.folder)
        if isinstance(picture, Fault):
            return Item.failed(picture)
        media = () if picture is None else (picture.media,)
        kept = {k: v for k, v in record.value.items() if k not in _TAKEN and v is not None}
        sample = Sample(
            id=content_id(
                self.source.name, record.file, record.where, *(m.media_id for m in media), *sum(turns, ())
            ),
            kind="instruct",
            source=self.source.name,
            url=record.file,
            license=record_licence(record, self.source.license),
            segments=dialogue(turns, image=picture is not None),
            media=media,
            image_bytes=() if picture is None else (picture.data,),
            general_metadata=as_json(kept) if kept else None,
        )
        return Item(file=record.file, where=record.where, sample=sample)


def dialogue(turns: list[tuple[str, str]], *, image: bool) -> tuple[Segment, ...]:
    """Turns as segments: the image opens the first question; only answers carry loss."""
    segments: list[Segment] = []
    for n, (question, answer) in enumerate(turns):
        if image and n == 0:
            segments.append(Segment(type="image", media=0, role="user", turn=0, loss=0.0))
        segments.append(Segment(type="text", text=question, role="user", turn=n, loss=0.0))
        segments.append(Segment(type="text", text=answer, role="assistant", turn=n, loss=1.0))
    return tuple(segments)


def _turns(record: dict[str, Any]) -> list[tuple[str, str]]:
    turns = record.get("turns")
    if turns is None:
        turns = [(record.get("question"), record.get("answer"))]
    found = []
    for turn in turns if isinstance(turns, list) else []:
        pair = (turn.get("question"), turn.get("answer")) if isinstance(turn, dict) else turn
        if not isinstance(pair, list | tuple) or len(pair) != 2 or any(p is None for p in pair):
            return []
        question, answer = (str(p).strip() for p in pair)
        if not question or not answer:
            return []
        found.append((question, answer))
    return found
