"""Answers that were paid for, on disk: a build that was killed does not ask again.

The key is the whole request, images by their hash; the address of the endpoint and the API key are no part
of it. Several tasks of a build write to one file.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.sample import content_id

_WAIT_S = 60.0


class AnswerCache:
    """A table of JSON answers by request. Raises DataError where the file is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as db:
            db.execute("CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, answer TEXT NOT NULL)")

    def get(self, key: str) -> dict[str, Any] | None:
        with self._open() as db:
            row = db.execute("SELECT answer FROM answers WHERE request = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """The first answer stays: whoever asked at the same time gets another one next time."""
        with self._open() as db:
            db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, json.dumps(answer)))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # A connection per call: readers are copied into worker processes, and a connection must not be.
        try:
            with closing(sqlite3.connect(self.path, timeout=_WAIT_S)) as db, db:
                yield db
        except sqlite3.DatabaseError as e:
            raise DataError(f"{self.path}: {e}.\n  Delete it to ask the endpoint again.") from None


def request_key(payload: dict[str, Any], images: tuple[str, ...]) -> str:
    """`payload` without pixels; `images` by their hash."""
    return content_id(json.dumps(payload, sort_keys=True), *images)
