"""One static HTML page with samples as training sees them: images and text in order, roles and turns.

What is shown was written by others: everything is escaped, and the page may load and run nothing.
"""

import base64
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_pipeline.build.write.tar import SUFFIX_OF
from data_pipeline.errors import ConfigError, nearest
from data_pipeline.manifest import Shard, read_manifest
from data_pipeline.sample import Sample


def preview(
    directory: Path, *, n: int = 20, seed: int = 0, split: str | None = None, source: str | None = None
) -> str:
    """The page, with `n` samples drawn evenly over the sources. Raises ConfigError for an unknown source."""
    manifest = read_manifest(directory)
    if source is not None and source not in manifest.funnel:
        raise ConfigError(
            f"no source '{source}' in {directory}{nearest(source, manifest.funnel)}\n"
            f"  Sources: {', '.join(sorted(manifest.funnel))}"
        )
    shards = manifest.shards(format="arrow", split=split, source=source)
    drawn = [_view(sample, shard) for shard, sample in _draw(directory, shards, n, seed)]
    # Only this one folder's template is ever loaded; autoescape is on for all of it.
    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    return env.get_template("preview.html.j2").render(manifest=manifest, samples=drawn)


def _draw(directory: Path, shards: list[Shard], n: int, seed: int) -> Iterator[tuple[Shard, Sample]]:
    """Samples at random, the sources in turn, so that a small source is seen beside a large one."""
    rng = random.Random(f"preview:{seed}")
    of: dict[str, list[tuple[Shard, int]]] = {}
    for shard in shards:
        of.setdefault(shard.source, []).extend((shard, i) for i in range(shard.samples))
    for rows in of.values():
        rng.shuffle(rows)
    wanted: list[tuple[Shard, int]] = []
    while len(wanted) < n and any(of.values()):
        wanted.extend(rows.pop() for rows in of.values() if rows)
    for shard, row in sorted(wanted[:n], key=lambda w: (w[0].source, w[0].path, w[1])):
        with pa.memory_map(str(directory / shard.path)) as file:
            yield shard, Sample.from_row(_row(pa.ipc.open_file(file), row))


def _row(reader: pa.ipc.RecordBatchFileReader, row: int) -> dict[str, Any]:
    for i in range(reader.num_record_batches):
        batch = reader.get_batch(i)
        if row < batch.num_rows:
            return batch.slice(row, 1).to_pylist()[0]
        row -= batch.num_rows
    raise ConfigError("the shard holds fewer samples than the manifest says: run `fovea data verify`")


def _view(sample: Sample, shard: Shard) -> dict[str, Any]:
    parts = []
    for s in sample.segments:
        part: dict[str, Any] = {"type": s.type, "text": s.text, "role": s.role, "turn": s.turn, "uri": None}
        if s.type == "image" and s.media is not None:
            media, data = sample.media[s.media], sample.image_bytes[s.media]
            part["text"] = f"{media.width}x{media.height} {media.alt or ''}"
            if data is not None and media.mime in SUFFIX_OF:
                part["uri"] = f"data:{media.mime};base64,{base64.b64encode(data).decode()}"
        parts.append(part)
    return {"sample": sample, "split": shard.split, "parts": parts}
