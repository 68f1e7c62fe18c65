"""Scores as sidecar columns: computed once over the shards, joined by id, no shard rewritten.

    DIR/columns/NAME/SHARD.arrow     one file per shard, named like it
    DIR/columns/NAME/COLUMN.json     scorer, version, digest of the shards, the files; written last

A file says in its own metadata what it was made of, so a run that was killed goes on at the next shard.
Every sample of the shards is scored, also those that are excluded by now: a later threshold may be lower.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline.build.score.scorer import Score, Scorer
from data_pipeline.errors import ConfigError, DataError, nearest
from data_pipeline.manifest import (
    Manifest,
    Shard,
    check_shard,
    commit,
    read_manifest,
    sha256_file,
    write_json,
)
from data_pipeline.sample import Sample, content_id
from data_pipeline.view import record_batches

COLUMNS = "columns"
RECORD = "COLUMN.json"
BATCH = 32
_NAME = re.compile(r"[a-z0-9_]+")
# `document`, `images`, `chars` are of the whole sample: what a threshold costs is known without shards.
_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        ("media_id", pa.string()),
        pa.field("value", pa.float32(), nullable=False),
        ("segment", pa.int32()),
        pa.field("document", pa.bool_(), nullable=False),
        pa.field("images", pa.int32(), nullable=False),
        pa.field("chars", pa.int64(), nullable=False),
    ]
)


def score_dataset(
    directory: Path, scorer: Scorer, *, say: Callable[[str], None] = lambda line: None
) -> dict[str, int]:
    """Write the scorer's columns; rows by column. Shards that are done, by this very scorer, are passed over.

    Raises DataError for a shard that does not verify, ConfigError for a scorer that breaks its promise.
    """
    if wrong := [c for c in scorer.columns if not _NAME.fullmatch(c)]:
        raise ConfigError(f"scorer '{scorer.name}': column {wrong[0]!r} is not of [a-z0-9_]+")
    manifest = read_manifest(directory)
    shards = manifest.shards(format="arrow")
    left = [s for s in shards if not all(_is_done(directory, c, s, scorer) for c in scorer.columns)]
    if left:
        for column in scorer.columns:  # while files are replaced, the column does not exist
            (directory / COLUMNS / column / RECORD).unlink(missing_ok=True)
    if len(left) < len(shards):
        say(f"{len(shards) - len(left)} of {len(shards)} shards are scored already")
    for n, shard in enumerate(left, start=1):
        check_shard(directory, shard)
        rows = _score_shard(directory, shard, scorer)
        for column in scorer.columns:
            _write(_file(directory, column, shard), rows[column], _made_of(shard, scorer))
        say(f"scored {shard.path}, {n} of {len(left)}")
    return {c: _record(directory, c, shards, scorer, _digest(manifest)) for c in scorer.columns}


def read_column(directory: Path, name: str) -> pa.Table:
    """id, media_id (null: the sample itself), value, segment, document, images, chars; in the shards' order.

    Opens no shard. Raises ConfigError where there is no such column, DataError where it does not verify or
    was made of another dataset.
    """
    home = directory / COLUMNS
    path = home / name / RECORD
    if not _NAME.fullmatch(name) or not path.is_file():
        known = column_names(directory)
        raise ConfigError(
            f"{directory} has no column '{name}'{nearest(name, known)}\n"
            f"  It has: {', '.join(known) or 'none'}. Make one:  fovea data score {directory} --scorer NAME"
        )
    fix = f"Repeat:  fovea data score {directory} --scorer ..."
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        digest, files = record["shards"], [(f["path"], f["sha256"]) for f in record["files"]]
    except (ValueError, KeyError, TypeError) as e:
        raise DataError(f"{path} is no record of a column: {e}.\n  {fix}") from None
    if digest != _digest(read_manifest(directory)):
        raise DataError(f"column '{name}' was made of another dataset than {directory} now holds.\n  {fix}")
    tables = [_read(home / name, file, sha256, fix) for file, sha256 in files]
    return pa.concat_tables(tables) if tables else _SCHEMA.empty_table()


def column_names(directory: Path) -> list[str]:
    return sorted(p.parent.name for p in (directory / COLUMNS).glob(f"*/{RECORD}"))


def _digest(manifest: Manifest) -> str:
    """Of the shards alone: exclusions come and go, and the column holds."""
    return content_id(*(f"{s.path} {s.sha256}" for s in manifest.shards(format="arrow")))


def _score_shard(directory: Path, shard: Shard, scorer: Scorer) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {c: [] for c in scorer.columns}
    for samples in _batches(directory, shard, pixels=scorer.reads_images):
        about = {s.id: s for s in samples}
        for score in scorer.score(samples):
            if (
                score.column not in rows
                or score.id not in about
                or score.media_id not in (None, *(m.media_id for m in about[score.id].media))
                or not math.isfinite(score.value)
            ):
                raise ConfigError(
                    f"scorer '{scorer.name}' gave a score that is not of its columns, not of the samples it "
                    f"was shown, or not a number: {score}"
                )
            rows[score.column].append(_row(score, about[score.id]))
    return rows


def _row(score: Score, sample: Sample) -> dict[str, Any]:
    return {
        "id": score.id,
        "media_id": score.media_id,
        "value": score.value,
        "segment": score.segment,
        "document": sample.kind in ("interleaved", "pdf"),
        "images": len(sample.media),
        "chars": sum(len(s.text) for s in sample.segments if s.text),
    }


def _batches(directory: Path, shard: Shard, *, pixels: bool) -> Iterator[list[Sample]]:
    for batch in record_batches(directory, shard):
        if not pixels:
            batch = batch.drop_columns(["images"])
        for start in range(0, batch.num_rows, BATCH):
            rows = batch.slice(start, BATCH).to_pylist()
            for row in rows:
                row.setdefault("images", [{"bytes": None}] * len(row["media"]))
            yield [Sample.from_row(row) for row in rows]


def _file(directory: Path, column: str, shard: Shard) -> Path:
    return directory / COLUMNS / column / f"{Path(shard.path).stem}.arrow"


def _made_of(shard: Shard, scorer: Scorer) -> dict[str, str]:
    return {"shard": shard.path, "sha256": shard.sha256, "scorer": scorer.name, "version": scorer.version}


def _is_done(directory: Path, column: str, shard: Shard, scorer: Scorer) -> bool:
    path = _file(directory, column, shard)
    try:
        with pa.memory_map(str(path)) as file:
            found = pa.ipc.open_file(file).schema.metadata or {}
    except (OSError, pa.ArrowInvalid):
        return False
    return {k.decode(): v.decode() for k, v in found.items()} == _made_of(shard, scorer)


def _write(path: Path, rows: list[dict[str, Any]], made_of: dict[str, str]) -> None:
    schema = _SCHEMA.with_metadata(made_of)
    with commit(path) as f, pa.ipc.new_file(f, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _record(directory: Path, column: str, shards: list[Shard], scorer: Scorer, digest: str) -> int:
    files = []
    for path in (_file(directory, column, s) for s in shards):
        with pa.memory_map(str(path)) as file:
            rows = pa.ipc.open_file(file).read_all().num_rows
        files.append({"path": path.name, "sha256": sha256_file(path), "rows": rows})
    total = sum(f["rows"] for f in files)
    page = {
        "scorer": scorer.name,
        "version": scorer.version,
        "shards": digest,
        "rows": total,
        "files": files,
    }
    write_json(directory / COLUMNS / column / RECORD, {"column": column, **page})
    return total


def _read(home: Path, file: str, sha256: str, fix: str) -> pa.Table:
    path = home / Path(file).name
    if not path.is_file() or sha256_file(path) != sha256:
        raise DataError(f"{path} {'was altered' if path.is_file() else 'is missing'}.\n  {fix}")
    with pa.OSFile(str(path)) as f:
        return pa.ipc.open_file(f).read_all().replace_schema_metadata(None)
