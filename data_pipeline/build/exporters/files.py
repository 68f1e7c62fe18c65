"""Files of an export: Parquet that is closed by size, lines of JSON, and pictures named by their content."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from data_pipeline.build.exporters.elements import Shown
from data_pipeline.build.write.parquet import ParquetWriter
from data_pipeline.build.write.tar import suffix_of
from data_pipeline.sample import content_id

FILE_BYTES = 256 * 2**20
IMAGES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # how `datasets` stores Image


class ParquetFiles:
    """`train-00000.parquet`, `train-00001.parquet`...: rows of one schema, a split to a file."""

    def __init__(self, out: Path, schema: pa.Schema):
        self.out, self.schema = out, schema
        self.open: dict[str, tuple[ExitStack, ParquetWriter]] = {}
        self.number: dict[str, int] = {}
        self.nbytes: dict[str, int] = {}

    def add(self, split: str, row: dict[str, Any], nbytes: int) -> None:
        if split not in self.open:
            number = self.number.get(split, 0)
            self.number[split] = number + 1
            stack = ExitStack()
            file = stack.enter_context((self.out / f"{split}-{number:05d}.parquet").open("wb"))
            self.open[split] = stack, stack.enter_context(ParquetWriter(file, self.schema))
            self.nbytes[split] = 0
        self.open[split][1].add(row, nbytes)
        self.nbytes[split] += nbytes
        if self.nbytes[split] >= FILE_BYTES:
            self.open.pop(split)[0].close()

    def close(self) -> None:
        for stack, _ in self.open.values():
            stack.close()
        self.open = {}


class TextFiles:
    """One text file a split, `train.jsonl` or `train-dialogues.json`; a JSON file is one list."""

    def __init__(self, out: Path, ending: str):
        self.out, self.ending = out, ending
        self.is_list = ending.endswith(".json")
        self.open: dict[str, IO[str]] = {}

    def add(self, split: str, value: Any) -> None:
        first = split not in self.open
        if first:
            path = self.out / f"{split}{self.ending}"
            self.open[split] = path.open("w", encoding="utf-8", newline="\n")
        before = ("[\n" if first else ",\n") if self.is_list else ""
        after = "" if self.is_list else "\n"
        self.open[split].write(before + json.dumps(value, ensure_ascii=False) + after)

    def close(self) -> None:
        for file in self.open.values():
            with file:
                if self.is_list:
                    file.write("\n]\n")
        self.open = {}


class ImageFolder:
    """`images/ab/abcd....jpg`: each picture once, its bytes as they are, its name from nothing but them."""

    def __init__(self, out: Path):
        self.out = out

    def put(self, picture: Shown) -> str:
        """The path of the picture, relative to the export."""
        key = content_id(picture.data)
        name = f"images/{key[:2]}/{key}.{suffix_of(picture.media.mime, picture.data)}"
        path = self.out / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture.data)
        return name


def stored(pictures: Iterator[Shown | None] | list[Shown | None]) -> list[dict[str, Any] | None]:
    """Pictures as `IMAGES` holds them; None keeps its place."""
    return [None if p is None else {"bytes": p.data, "path": file_name(p)} for p in pictures]


def file_name(picture: Shown) -> str:
    return f"{content_id(picture.data)}.{suffix_of(picture.media.mime, picture.data)}"


def size_of(pictures: list[Shown]) -> int:
    return sum(len(p.data) for p in pictures) + 1024
