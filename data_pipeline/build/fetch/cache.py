"""What was fetched, on disk: bytes under their hash, one record per URL. Processes may share it.

    objects/ab/<media_id>      the bytes
    records/ab/<key>.json      what is known of a URL, under one policy
    robots/ab/<key>.json       the robots.txt of a host
    hosts/ab/<key>             when the next request to a host may start (pace.py)
    claims                     locked byte by byte: which URLs are being fetched just now

Files appear whole or not at all, and locks go with their process, so that a kill leaves nothing to repair.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from data_pipeline.build.fetch.outcome import Record, Robots
from data_pipeline.manifest import commit
from data_pipeline.sample import content_id

T = TypeVar("T", Record, Robots)
_RECORD = TypeAdapter(Record)
_ROBOTS = TypeAdapter(Robots)


class Cache:
    def __init__(self, root: Path):
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self._claims = os.open(root / "claims", os.O_RDWR | os.O_CREAT, 0o600)

    def close(self) -> None:
        os.close(self._claims)

    def record(self, key: str) -> Record | None:
        """What is known of a URL; None: nothing that holds today, or nothing that can be read."""
        return _page(self._path("records", key, ".json"), _RECORD)

    def remember(self, key: str, record: Record) -> None:
        self._write(self._path("records", key, ".json"), _RECORD.dump_json(record))

    def forget(self, key: str) -> None:
        self._path("records", key, ".json").unlink(missing_ok=True)

    def robots(self, key: str) -> Robots | None:
        return _page(self._path("robots", key, ".json"), _ROBOTS)

    def remember_robots(self, key: str, robots: Robots) -> None:
        self._write(self._path("robots", key, ".json"), _ROBOTS.dump_json(robots))

    def store(self, data: bytes) -> str:
        """Commit the bytes; returns their id, which is that of a `Media`."""
        media_id = content_id(data)
        if self.read(media_id) is None:
            self._write(self._path("objects", media_id), data)
        return media_id

    def read(self, media_id: str) -> bytes | None:
        """The bytes, proved to be those that were stored; None where they are not there or altered."""
        try:
            data = self._path("objects", media_id).read_bytes()
        except FileNotFoundError:
            return None
        return data if content_id(data) == media_id else None

    def claim(self, key: str) -> bool:
        """True: no other process fetches this URL, and none will before `release` or the end of this one."""
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(key))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def release(self, key: str) -> None:
        fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, _offset(key))

    def _path(self, kind: str, key: str, suffix: str = "") -> Path:
        return self.root / kind / key[:2] / f"{key}{suffix}"

    def _write(self, path: Path, data: bytes) -> None:
        with commit(path) as f:
            f.write(data)


def _page(path: Path, kind: TypeAdapter[T]) -> T | None:
    """The page, unless its time is over or it was damaged."""
    try:
        page = kind.validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return page if page.until is None or page.until > time.time() else None


def _offset(key: str) -> int:
    return int(key[:15], 16)  # 60 bits: two URLs on one byte would merely wait for each other
