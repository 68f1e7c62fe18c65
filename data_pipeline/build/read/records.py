"""Row readers over a local path, for callers that list inputs as paths. New code uses `row_reader`."""

from dataclasses import dataclass
from pathlib import Path

from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.layouts.captions import IMAGE_KEYS
from data_pipeline.build.read.reading import Folder
from data_pipeline.build.read.row_reader import RowReader
from data_pipeline.build.read.rows.containers import read_rows
from data_pipeline.build.read.rows.row import Row, Unit

__all__ = ["IMAGE_KEYS", "LocalRows", "load_records", "local_rows"]


@dataclass(frozen=True)
class LocalRows(RowReader):
    """A row reader whose inputs are paths."""

    folder: Folder = None  # type: ignore[assignment]

    def inputs(self) -> list[Path]:  # type: ignore[override]
        return [self.folder.root / s.name for s in super().inputs()]


def local_rows(source: object, kind: str, path: Path, folder: Folder) -> LocalRows:
    tree = Tree.at(path, max_bytes=folder.max_bytes)
    return LocalRows(source.name, kind, source.license, tree, folder=folder)  # type: ignore[attr-defined]


def load_records(path: Path, file: str) -> list[Row]:
    """Every record of the file, with the place to name in messages."""
    return list(read_rows(Tree.at(path), Unit(file)))
