"""A WebDataset tar that is byte-identical on every rerun, with an index of where each sample begins.

Per sample `<id>.json` (every column but the images) first, then `<id>.000.jpg`, `<id>.001.png`...
USTAR, no times, no owners.
"""

import io
import json
import struct
import tarfile
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from data_pipeline.manifest import commit
from data_pipeline.sample import Sample

SUFFIX_OF = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "image/gif": "gif"}


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
    # By way of Sample: Arrow's maps become mappings, and its float32 are what is written here too.
    columns = {k: v for k, v in Sample.from_row(row).to_row().items() if k != "images"}
    text = json.dumps(columns, sort_keys=True, ensure_ascii=False)
    found = [(f"{row['id']}.json", text.encode())]
    for i, (media, image) in enumerate(zip(row["media"], row["images"], strict=True)):
        if image["bytes"] is not None:
            found.append((f"{row['id']}.{i:03d}.{SUFFIX_OF[media['mime']]}", image["bytes"]))
    return found


def pack_index(offsets: list[int]) -> bytes:
    """Little-endian u64: the offset of each sample, then the end of the last one."""
    return struct.pack(f"<{len(offsets)}Q", *offsets)
