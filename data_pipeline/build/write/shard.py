"""One shard in every format asked for, row for row the same. It appears whole or not at all."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline.build.write.parquet import ParquetWriter
from data_pipeline.build.write.tar import TarWriter, index_path
from data_pipeline.manifest import Shard, commit, sha256_file
from data_pipeline.sample import SCHEMA, Sample

BATCH_ROWS = 32
BATCH_BYTES = 64 * 2**20
# A column of binary data in one Arrow batch has 32-bit offsets; a sample is never divided.
MAX_SAMPLE_BYTES = 2**31 - 2**20
SUFFIXES = {"arrow": "arrow", "webdataset": "tar", "parquet": "parquet"}


class ShardWriter:
    """Takes samples of one (source, split). Leave it by `finish`, or by `abandon` so that nothing remains."""

    def __init__(self, directory: Path, stem: str, source: str, split: str, formats: tuple[str, ...]):
        self.directory, self.source, self.split = directory, source, split
        self.paths = {f: Path("shards") / f"{stem}.{SUFFIXES[f]}" for f in formats}
        self.rows: list[dict[str, Any]] = []
        self.sizes: list[int] = []
        self.samples = self.images = self.text_chars = self.nbytes = 0
        self.files: dict[str, str] = {}  # sha256 of what comes beside the shards, by path; full once finished
        self.stack = ExitStack()
        self.arrow: pa.ipc.RecordBatchFileWriter | None = None
        self.tar: TarWriter | None = None
        self.parquet: ParquetWriter | None = None
        for format, path in self.paths.items():
            file = self.stack.enter_context(commit(directory / path))
            match format:
                case "arrow":
                    self.arrow = self.stack.enter_context(pa.ipc.new_file(file, SCHEMA))
                case "webdataset":
                    self.tar = self.stack.enter_context(TarWriter(file, directory / path))
                case "parquet":
                    self.parquet = self.stack.enter_context(ParquetWriter(file, SCHEMA))

    def add(self, sample: Sample) -> None:
        """Take a sample of at most `MAX_SAMPLE_BYTES`."""
        size = sample_bytes(sample)
        if self.rows and sum(self.sizes) + size > BATCH_BYTES:
            self._flush()
        self.rows.append(sample.to_row())
        self.sizes.append(size)
        self.samples += 1
        self.images += len(sample.media)
        self.text_chars += sum(len(s.text) for s in sample.segments if s.text)
        self.nbytes += size
        if len(self.rows) >= BATCH_ROWS:
            self._flush()

    def finish(self) -> list[Shard]:
        self._flush()
        self.stack.close()
        if self.tar is not None:
            index = index_path(self.tar.path)
            self.files[index.relative_to(self.directory).as_posix()] = sha256_file(index)
        return [
            Shard(
                path=path.as_posix(),
                format=format,
                split=self.split,
                source=self.source,
                nbytes=(self.directory / path).stat().st_size,
                sha256=sha256_file(self.directory / path),
                samples=self.samples,
                images=self.images,
                text_chars=self.text_chars,
            )
            for format, path in self.paths.items()
        ]

    def abandon(self, *exception: Any) -> None:
        """Remove what is unfinished: the files were never renamed."""
        cause = exception if exception and exception[0] else (RuntimeError, RuntimeError("abandoned"), None)
        try:
            self.stack.__exit__(*cause)
        except BaseException as e:
            if e is not cause[1]:
                raise

    def _flush(self) -> None:
        if not self.rows:
            return
        batch = pa.RecordBatch.from_pylist(self.rows, schema=SCHEMA)
        if self.arrow is not None:
            self.arrow.write_batch(batch)
        if self.tar is not None:
            self.tar.write(batch.to_pylist())
        if self.parquet is not None:
            for row, size in zip(self.rows, self.sizes, strict=True):
                self.parquet.add(row, size)
        self.rows, self.sizes = [], []


def sample_bytes(sample: Sample) -> int:
    """About what the sample takes on disk: its pictures, its text, and a little for the rest."""
    return (
        sum(len(b) for b in sample.image_bytes if b)
        + sum(len(s.text) for s in sample.segments if s.text)
        + 1024
    )
