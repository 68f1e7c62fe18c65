"""A .json file: a list of records, COCO's images and annotations, or lines under another name.

Every part parses the file and keeps every n-th record: parsing is some hundred times cheaper than the images.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from typing import Any

from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.rows.json_text import JsonError, JsonText
from data_pipeline.build.read.rows.lines import json_lines
from data_pipeline.build.read.rows.row import MAX_ROW, Row, Unit, broken, mapping

_HEAD = 2**20
_EXPECTED = "expected a list of records, found a mapping"


def json_file(tree: Tree, unit: Unit, max_row: int = MAX_ROW) -> Iterator[Row]:
    with tree.open(unit.file) as f:
        head = f.read(_HEAD)
    if _is_lines(head):
        yield from json_lines(tree, unit, max_row)
        return
    with tree.open(unit.file) as f:
        text = JsonText(f, max_row)
        start = _start(text)
        if start == "{":
            yield from _coco(text, unit)
        elif start == "[":
            yield from _list(text, unit)
        elif unit.owns(0):
            detail = "not JSON: the file is empty" if not start else f"not JSON: begins with {start!r}"
            yield broken(unit.file, "file", detail)


def _start(text: JsonText) -> str:
    try:
        return text.peek()
    except JsonError as e:
        return str(e)


def _is_lines(head: bytes) -> bool:
    """The first line is an object of its own, and another begins below it."""
    first, _, rest = head.lstrip().partition(b"\n")
    if not first.startswith(b"{") or not rest.lstrip().startswith(b"{"):
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def _list(text: JsonText, unit: Unit) -> Iterator[Row]:
    n = -1
    try:
        for n, value in enumerate(text.elements()):
            if unit.owns(n):
                yield mapping(unit.file, f"record {n}", value)
        if text.peek():
            raise JsonError(f"{text.peek()!r} after the list's end")
    except JsonError as e:
        if unit.owns(n + 1):
            yield broken(unit.file, f"record {n + 1}", f"not JSON: {e}; the rest of the file is not read")


def _coco(text: JsonText, unit: Unit) -> Iterator[Row]:
    """Images with their captions, joined on disk: an annotation may stand anywhere in the file."""
    licences: dict[Any, Any] = {}
    seen: set[str] = set()
    fault = None
    # A database without a name lies in a temporary file, which goes with the connection.
    with contextlib.closing(sqlite3.connect("")) as db:
        db.execute("CREATE TABLE image (n INTEGER PRIMARY KEY, body TEXT)")
        db.execute("CREATE TABLE caption (image TEXT, body TEXT)")
        try:
            for key in text.members():
                seen.add(key)
                _member(key, text, db, licences, unit)
        except JsonError as e:
            fault = f"not JSON: {e}; the rest of the file is not read"
        db.execute("CREATE INDEX caption_image ON caption (image)")
        if fault is None and not {"images", "annotations"} <= seen:
            fault = _EXPECTED
        if fault is not None and unit.owns(0):
            yield broken(unit.file, "file", fault)
        if fault != _EXPECTED:
            yield from _joined(db, licences, unit.file)


def _member(key: str, text: JsonText, db: sqlite3.Connection, licences: dict[Any, Any], unit: Unit) -> None:
    if text.peek() != "[":
        text.value()
        return
    for n, value in enumerate(text.elements()):
        if key == "images" and unit.owns(n):
            db.execute("INSERT OR IGNORE INTO image VALUES (?, ?)", (n, json.dumps(value)))
        elif key == "annotations" and isinstance(value, dict) and value.get("caption"):
            join = json.dumps(value.get("image_id"))
            db.execute("INSERT INTO caption VALUES (?, ?)", (join, json.dumps(value["caption"])))
        elif key == "licenses" and isinstance(value, dict):
            licences[json.dumps(value.get("id"))] = value


def _joined(db: sqlite3.Connection, licences: dict[Any, Any], file: str) -> Iterator[Row]:
    for n, body in db.execute("SELECT n, body FROM image ORDER BY n"):
        image, where = json.loads(body), f"record {n}"
        if isinstance(image, dict):
            key = (json.dumps(image.get("id")),)
            found = db.execute("SELECT body FROM caption WHERE image = ? ORDER BY rowid", key)
            captions = [json.loads(b) for (b,) in found]
            licence = licences.get(json.dumps(image.get("license")))
            image = {**image, "captions": captions, "license": licence}
        yield mapping(file, where, image)
