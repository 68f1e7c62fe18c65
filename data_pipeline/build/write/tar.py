"""A WebDataset tar that is byte-identical on every rerun, with an index of where each sample begins.

Per sample `<key>.json` (every column but the images) first, then `<key>.000.jpg`, `<key>.001.png`...
USTAR, no times, no owners. The key is the sample's id wherever that can be one.
"""

import io
import json
import re
import struct
import tarfile
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from data_pipeline.manifest import commit
from data_pipeline.sample import content_id

SUFFIX_OF = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "image/gif": "gif"}
_MAGIC = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp"), (b"GIF8", "gif"))
# WebDataset ends the key at the first dot, makes folders of slashes, and USTAR has room for 100 characters.
_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")


def index_path(tar: Path) -> Path:
    return tar.with_name(f"{tar.name}.idx")


class TarWriter:
    """Writes samples to an open binary file; `close` ends the archive and commits the index beside it."""

    def __init__(self, file: IO[bytes], path: Path):
        self.path = path
        self.tar = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self.offsets: list[int] = []

    def write(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            self.offsets.append(self.tar.offset)
            for name, data in members(row):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                self.tar.addfile(info, io.BytesIO(data))

    def close(self) -> None:
        self.offsets.append(self.tar.offset)  # where the last sample ends
        self.tar.close()
        with commit(index_path(self.path)) as f:
            f.write(pack_index(self.offsets))

    def __enter__(self) -> "TarWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()


def members(row: dict[str, Any]) -> list[tuple[str, bytes]]:
    """The files of one sample, a row as Arrow gives it back, in order. An image not stored has no file."""
    columns = {k: v for k, v in row.items() if k != "images"}
    text = json.dumps(columns, sort_keys=True, ensure_ascii=False)
    key = row["id"] if _KEY.fullmatch(row["id"]) else content_id(row["id"])
    found = [(f"{key}.json", text.encode())]
    for i, (media, image) in enumerate(zip(row["media"], row["images"], strict=True)):
        if (data := image["bytes"]) is not None:
            found.append((f"{key}.{i:03d}.{suffix_of(media['mime'], data)}", data))
    return found


def suffix_of(mime: str | None, data: bytes) -> str:
    """The ending of a file with this image; told by its first bytes where the record does not say."""
    magic = (suffix for start, suffix in _MAGIC if data.startswith(start))
    return SUFFIX_OF.get(mime or "") or next(magic, "bin")


def pack_index(offsets: list[int]) -> bytes:
    """Little-endian u64: the offset of each sample, then the end of the last one."""
    return struct.pack(f"<{len(offsets)}Q", *offsets)
