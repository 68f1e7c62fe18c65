"""Questions about images, as rows: the names of their files, and their reader over a local path."""

from pathlib import Path

from data_pipeline.build.read.layouts.turns import Message
from data_pipeline.build.read.layouts.turns import dialogue as _dialogue
from data_pipeline.build.read.reading import Folder
from data_pipeline.build.read.records import LocalRows, local_rows
from data_pipeline.build.read.row_reader import PATTERNS as _PATTERNS
from data_pipeline.build.recipe import QuestionsSource
from data_pipeline.sample import Segment

PATTERNS = _PATTERNS["questions"]


def QuestionsReader(source: QuestionsSource, path: Path, folder: Folder) -> LocalRows:
    return local_rows(source, "questions", path, folder)


def dialogue(turns: list[tuple[str, str]], *, image: bool) -> tuple[Segment, ...]:
    """Turns as segments: the image opens the first question; only answers carry loss."""
    messages = []
    for n, (question, answer) in enumerate(turns):
        opening = (None,) if image and n == 0 else ()
        messages += [Message("user", (*opening, question)), Message("assistant", (answer,))]
    return _dialogue(messages)
