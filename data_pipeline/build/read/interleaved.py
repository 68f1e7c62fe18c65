"""Interleaved documents, as rows: the names of their files, and their reader over a local path."""

from pathlib import Path

from data_pipeline.build.read.reading import Folder
from data_pipeline.build.read.records import LocalRows, local_rows
from data_pipeline.build.read.row_reader import PATTERNS as _PATTERNS
from data_pipeline.build.recipe import InterleavedSource

PATTERNS = _PATTERNS["interleaved"]


def InterleavedReader(source: InterleavedSource, path: Path, folder: Folder, heldout: float) -> LocalRows:
    return local_rows(source, "interleaved", path, folder)
