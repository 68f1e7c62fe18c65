"""Images with captions, as rows: the names of their files, and their reader over a local path."""

from pathlib import Path

from data_pipeline.build.read.reading import Folder
from data_pipeline.build.read.records import LocalRows, local_rows
from data_pipeline.build.read.row_reader import PATTERNS as _PATTERNS
from data_pipeline.build.recipe import CaptionsSource

PATTERNS = _PATTERNS["captions"]


def CaptionsReader(source: CaptionsSource, path: Path, folder: Folder) -> LocalRows:
    return local_rows(source, "captions", path, folder)
