"""One small dataset in every shard format, its copies, and a server that knows byte ranges."""

import http.server
import re
from dataclasses import replace
from pathlib import Path

from data_pipeline import manifest as m
from data_pipeline.build.write.shard import ShardWriter
from data_pipeline.sample import Sample
from data_pipeline.stream.datasets import Datasets
from data_pipeline.stream.shards.opened import Shards
from data_pipeline.stream.source import Source

FORMATS = ("arrow", "webdataset", "parquet")

SUFFIX = {"arrow": "arrow", "webdataset": "tar", "parquet": "parquet"}

PER_SHARD = 40


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Files of a directory in ranges. `server.asked` lists (path, bytes sent) of each GET."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else head and body of an answer are 40 ms apart

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        if self.server.failures:
            return self.send_error(self.server.failures.pop())
        data, status = path.read_bytes(), 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and self.server.ranges:
            data, status = data[int(wanted[1]) : int(wanted[2]) + 1], 206
        self.server.asked.append((path.name, len(data)))
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def send_header(self, name: str, value: str) -> None:
        if name == "Content-Length" and not self.server.sizes:
            name, value = "Connection", "close"
        super().send_header(name, value)

    def end_headers(self) -> None:
        if self.command == "HEAD" and self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


def build(directory: Path, written: list[Sample], formats: tuple[str, ...] = FORMATS) -> m.Manifest:
    shards, files = [], {}
    for n in range(0, len(written), PER_SHARD):
        writer = ShardWriter(directory, f"docs-train-{n:05d}", "docs", "train", formats)
        for sample in written[n : n + PER_SHARD]:
            writer.add(sample)
        shards += writer.finish()
        files |= writer.files
    funnel = {"docs": m.Funnel(read=len(written), written=len(written))}
    record = m.TaskRecord(task=0, tasks=1, fingerprint="f", shards=tuple(shards), funnel=funnel, files=files)
    made = m.Manifest(name="tiny", fingerprint="f", recipe={}, licences={}, unread=(), tasks=(record,))
    m.write_task_record(directory, record)
    m.write_manifest(directory, made)
    return m.read_manifest(directory)


def opened(root: str | Path, format: str | None = None, **settings) -> Source:
    return Datasets.read([root], format=format, shards=Shards(**settings)).source("docs", "train")


def copied(built: tuple[Path, m.Manifest], to: Path) -> m.Manifest:
    for path in built[0].rglob("*.*"):
        target = to / path.relative_to(built[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            target.write_bytes(path.read_bytes())
    return built[1]


def resealed(directory: Path, manifest: m.Manifest) -> m.Manifest:
    """With the sizes and digests that the files have now: what is in them is the fault, then."""
    task = manifest.tasks[0]
    shards = tuple(
        replace(s, nbytes=(directory / s.path).stat().st_size, sha256=m.sha256_file(directory / s.path))
        for s in task.shards
    )
    files = {path: m.sha256_file(directory / path) for path in task.files if (directory / path).exists()}
    return replace(manifest, tasks=(replace(task, shards=shards, files=files),))
