"""Where the images of a crawl lie: URL -> file and offset, over all its WARC files, in one sqlite file.

A revisit record stands for the image whose address or digest it repeats. The file is built whole under
another name and renamed, so that it is there or not. What it knows of files that have not changed (name,
size, version) is taken over into the next one.
"""

import contextlib
import json
import os
import re
import sqlite3
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import quote

from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.reading import Stamp
from data_pipeline.build.read.warc_http import WarcRecord, parse
from data_pipeline.build.read.warc_split import Broken, RawRecord, raw_records, record_at
from data_pipeline.manifest import fsync_directory

NAME = "images.sqlite"
MAX_REDIRECTS = 5
_VERSION = 2
_ROWS = 1000  # held before they are written
_TABLES = """
CREATE TABLE files (id INTEGER PRIMARY KEY, name TEXT, size INTEGER, version TEXT, kinds TEXT);
CREATE TABLE found (
  key TEXT, scheme TEXT, file INTEGER, offset INTEGER, length INTEGER, target TEXT, body BLOB,
  PRIMARY KEY (key, scheme, file, offset)
) WITHOUT ROWID;
"""
Row = tuple[str, str, int, int, int, str | None, bytes | None]
_DIGEST = re.compile(r"[A-Za-z0-9-]{2,20}:[A-Za-z0-9+/=_-]{16,200}")
_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)", re.IGNORECASE)


def build_index(tree: Tree, files: Sequence[Stamp], directory: Path, max_bytes: int) -> Path:
    """The index of these files in `directory`, made or taken as it is. Raises OSError of the file system."""
    path = directory / NAME
    wanted = [(s.name, s.size, s.version) for s in files]
    if path.exists() and _files(path) == wanted:
        return path
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f"{NAME}.tmp-{uuid.uuid4().hex}"
    try:
        with contextlib.closing(sqlite3.connect(temporary)) as db:
            db.executescript(f"PRAGMA user_version = {_VERSION};{_TABLES}")
            if path.exists() and _files(path):
                db.execute("ATTACH ? AS old", (str(path),))
            for number, stamp in enumerate(files):
                if not _taken_over(db, number, stamp):
                    _index_file(db, number, stamp, tree, max_bytes)
                db.commit()
        with temporary.open("rb") as f:
            os.fsync(f.fileno())
        temporary.replace(path)
        fsync_directory(directory)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@dataclass(frozen=True)
class Place:
    """Where a record lies. `body`: its payload, where its file (one gzip member) has no places to go to."""

    file: str
    offset: int
    length: int
    body: bytes | None


class Crawl:
    """The images that a crawl holds, by URL."""

    def __init__(self, path: Path, tree: Tree, max_bytes: int):
        self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        self._tree = tree
        self.max_bytes = max_bytes

    def close(self) -> None:
        self._db.close()

    def find(self, url: str) -> Place | None:
        """Where the image of that URL lies, at the end of at most MAX_REDIRECTS redirects and revisits."""
        wanted = [url]
        for _ in range(MAX_REDIRECTS + 1):
            if not wanted:
                return None
            key = url_key(wanted[0]) or _digest_key(wanted[0])
            row = self._row(*key) if key else None
            if row and row[4] is None:
                return Place(*row[:4])
            wanted = [*((row[4] or "").split("\n") if row else ()), *wanted[1:]]
        return None

    def _row(self, scheme: str, key: str) -> tuple[str, int, int, bytes | None, str | None] | None:
        """An image before what leads to one, the scheme that was asked for before the other."""
        found = self._db.execute(
            "SELECT name, offset, length, body, target FROM found JOIN files ON file = id WHERE key = ?"
            " ORDER BY scheme <> ?, target IS NOT NULL, file, offset LIMIT 1",
            (key, scheme),
        )
        return cast(tuple[str, int, int, bytes | None, str | None] | None, found.fetchone())

    def fetch(self, place: Place) -> WarcRecord | str:
        """The image's record, or what is wrong. Raises OSError where its file cannot be read."""
        if place.body is not None:
            return WarcRecord("image", payload=place.body)
        with self._tree.open(place.file) as f:
            raw = record_at(f, place.offset, place.length, self.max_bytes)
        if isinstance(raw, Broken):
            return raw.detail
        record = parse(raw, self.max_bytes)
        return record if record.kind == "image" else f"the record there is '{record.kind}', no image"


def url_key(url: str) -> tuple[str, str] | None:
    """(scheme, the rest without fragment, default port and needless differences); None: no web address."""
    found = _URL.match(url.strip())
    if found is None:
        return None
    scheme, host, rest = found.group(1).lower(), found.group(2).lower(), found.group(3) or "/"
    host = host.removesuffix(":443" if scheme == "https" else ":80")
    return scheme, host + quote(rest, safe="%/:=&?~+!$,;'@()*[]|")


def _digest_key(digest: str) -> tuple[str, str] | None:
    return ("digest", digest) if _DIGEST.fullmatch(digest) else None


def kinds_of(path: Path) -> Counter[str]:
    """Records by kind, over all files of the index."""
    total: Counter[str] = Counter()
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        for (kinds,) in db.execute("SELECT kinds FROM files"):
            total.update(json.loads(kinds))
    return total


def _files(path: Path) -> list[tuple[str, int, str]] | None:
    """The files that an index knows; None where it is no index of this version."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            if db.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                return None
            return db.execute("SELECT name, size, version FROM files ORDER BY id").fetchall()
    except sqlite3.DatabaseError:
        return None


def _taken_over(db: sqlite3.Connection, number: int, stamp: Stamp) -> bool:
    if "old" not in {row[1] for row in db.execute("PRAGMA database_list")}:
        return False
    row = db.execute(
        "SELECT id, kinds FROM old.files WHERE name = ? AND size = ? AND version = ?",
        (stamp.name, stamp.size, stamp.version),
    ).fetchone()
    if row is None:
        return False
    db.execute(
        "INSERT INTO files VALUES (?, ?, ?, ?, ?)", (number, stamp.name, stamp.size, stamp.version, row[1])
    )
    db.execute(
        "INSERT INTO found SELECT key, scheme, ?, offset, length, target, body FROM old.found WHERE file = ?",
        (number, row[0]),
    )
    return True


def _index_file(db: sqlite3.Connection, number: int, stamp: Stamp, tree: Tree, max_bytes: int) -> None:
    kinds: Counter[str] = Counter()
    with tree.open(stamp.name) as f:
        rows: list[Row] = []
        for raw, record in _read(raw_records(f, max_bytes), max_bytes):
            kinds[record.kind] += 1
            if isinstance(raw, Broken) or record.kind not in ("image", "redirect", "revisit"):
                continue
            body = None if raw.seekable else record.payload
            for key, target in _entries(record):
                rows.append((key[1], key[0], number, raw.offset, raw.length, target, body))
            if len(rows) >= _ROWS or body is not None:
                _insert(db, rows)
        _insert(db, rows)
    db.execute(
        "INSERT INTO files VALUES (?, ?, ?, ?, ?)",
        (number, stamp.name, stamp.size, stamp.version, json.dumps(kinds, sort_keys=True)),
    )


def _entries(record: WarcRecord) -> Iterator[tuple[tuple[str, str], str | None]]:
    """The keys under which a record is found, with what it leads to where it holds no image."""
    key, digest = url_key(record.url), _digest_key(record.digest or "")
    match record.kind:
        case "image":
            yield from ((k, None) for k in (key, digest) if k is not None)
        case "redirect" if key and record.location:
            yield key, record.location
        case "revisit" if key:
            # Equal bytes before an equal address: that one may hold other bytes by now.
            if led := [t for t in (digest and digest[1], record.location) if t and "\n" not in t]:
                yield key, "\n".join(led)


def _read(
    found: Iterable[RawRecord | Broken], max_bytes: int
) -> Iterator[tuple[RawRecord | Broken, WarcRecord]]:
    for raw in found:
        yield raw, WarcRecord("broken") if isinstance(raw, Broken) else parse(raw, max_bytes)


def _insert(db: sqlite3.Connection, rows: list[Row]) -> None:
    # In a file of one gzip member all records share one offset: the first of a URL counts.
    db.executemany("INSERT OR IGNORE INTO found VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    rows.clear()
