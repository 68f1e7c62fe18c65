"""What differs between two built datasets: samples, columns, images, exclusions, recipes; in bounded memory.

Shards of equal sha256 hold equal rows and are not opened. Of the others, each row is told by a digest of each
column, in a temporary database by id.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from data_pipeline.manifest import Manifest, Shard, read_manifest
from data_pipeline.sample import SCHEMA
from data_pipeline.view import View, record_batches

_COLUMNS = ("split", *(name for name in SCHEMA.names if name != "id"))
_DIGEST = 8
_SHOWN = 10


@dataclass(frozen=True)
class Difference:
    """Pairs are (in A, in B). Samples are those of the shards; `counts` are those that are seen."""

    only_a: int
    only_b: int
    changed: int
    columns: dict[str, int]  # of the changed samples, how many differ in this column
    examples: dict[str, list[str]]  # a few ids under only_a, only_b, changed
    images_removed: int  # distinct pictures in A alone
    images_added: int
    counts: dict[str, dict[str, tuple[int, int]]]  # {source: {split: samples}}
    excluded_samples: tuple[int, int]  # excluded in A alone, in B alone
    excluded_images: tuple[int, int]
    recipe: dict[str, tuple[Any, Any]]  # key: its values, where they differ

    @property
    def same(self) -> bool:
        numbers = (self.only_a, self.only_b, self.changed, *self.excluded_samples, *self.excluded_images)
        return not any(numbers)


def diff(a: Path, b: Path) -> Difference:
    """Compare two datasets. Raises DataError where one has no manifest or a shard that cannot be read."""
    a, b = Path(a), Path(b)
    first, second = read_manifest(a), read_manifest(b)
    shards_a, shards_b, common = _told_apart(first, second)
    db = sqlite3.connect("", isolation_level=None)  # a nameless file, gone when closed
    try:
        db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
            "CREATE TABLE a (id TEXT PRIMARY KEY, columns BLOB) WITHOUT ROWID;"
            "CREATE TABLE b (id TEXT PRIMARY KEY, columns BLOB) WITHOUT ROWID;"
            "CREATE TABLE image_a (id TEXT PRIMARY KEY) WITHOUT ROWID;"
            "CREATE TABLE image_b (id TEXT PRIMARY KEY) WITHOUT ROWID;"
            "BEGIN"
        )
        _fill(db, "a", a, shards_a)
        _fill(db, "b", b, shards_b)
        return _compared(db, a, b, first, second, common)
    finally:
        db.close()


def describe(difference: Difference) -> list[str]:
    """The summary for a terminal; A is what was, B what is."""
    d = difference
    if d.same:
        lines = ["the same samples, and the same of them excluded"]
    else:
        lines = [
            f"samples: {d.only_a:,} only in A, {d.only_b:,} only in B, {d.changed:,} in both but different"
        ]
    lines += [f"  {column} differs in {n:,}" for column, n in d.columns.items()]
    lines += [f"  {kind}, for instance: {', '.join(ids[:3])}" for kind, ids in d.examples.items() if ids]
    if d.images_removed or d.images_added:
        lines.append(f"images: {d.images_removed:,} only in A, {d.images_added:,} only in B")
    for source, splits in d.counts.items():
        for split, (one, other) in splits.items():
            sign = f" ({other - one:+,})" if one != other else ""
            lines.append(f"{source} {split}: {one:,} -> {other:,}{sign}")
    for what, (one, other) in (("samples", d.excluded_samples), ("images", d.excluded_images)):
        if one or other:
            lines.append(f"excluded {what}: {one:,} only in A, {other:,} only in B")
    lines += [f"recipe, {key}: {one!r} -> {other!r}" for key, (one, other) in d.recipe.items()]
    return lines


def _told_apart(a: Manifest, b: Manifest) -> tuple[list[Shard], list[Shard], list[Shard]]:
    """The shards of A and of B that must be opened, and those that are equal, as A names them."""

    def keyed(manifest: Manifest) -> dict[tuple[str, str, str], Shard]:
        return {(s.sha256, s.source, s.split): s for s in manifest.shards(format="arrow")}

    of_a, of_b = keyed(a), keyed(b)
    shared = of_a.keys() & of_b.keys()
    return (
        [s for k, s in of_a.items() if k not in shared],
        [s for k, s in of_b.items() if k not in shared],
        [s for k, s in of_a.items() if k in shared],
    )


def _fill(db: sqlite3.Connection, side: str, directory: Path, shards: list[Shard]) -> None:
    for shard in shards:
        for batch in record_batches(directory, shard):
            rows = batch.to_pylist()
            digests = ((row["id"], _digests(row, shard.split)) for row in rows)
            db.executemany(f"INSERT OR REPLACE INTO {side} VALUES (?, ?)", digests)
            pictures = ((m["media_id"],) for row in rows for m in row["media"])
            db.executemany(f"INSERT OR IGNORE INTO image_{side} VALUES (?)", pictures)


def _digests(row: dict[str, Any], split: str) -> bytes:
    pixels = [i["bytes"] and blake3(i["bytes"]).digest() for i in row["images"] or ()]
    values = (split, *(pixels if name == "images" else row[name] for name in _COLUMNS[1:]))
    return b"".join(blake3(repr(v).encode("utf-8", "surrogatepass")).digest(_DIGEST) for v in values)


def _compared(
    db: sqlite3.Connection, a: Path, b: Path, first: Manifest, second: Manifest, common: list[Shard]
) -> Difference:
    both = "SELECT id, a.columns, b.columns FROM a JOIN b USING (id) WHERE a.columns != b.columns ORDER BY id"
    columns = Counter[str]()
    changed: list[str] = []
    count = 0
    for id, one, other in db.execute(both):
        count += 1
        changed += [id] if len(changed) < _SHOWN else []
        columns.update(_differing(one, other))
    only = {
        "only_a": "FROM a WHERE id NOT IN (SELECT id FROM b)",
        "only_b": "FROM b WHERE id NOT IN (SELECT id FROM a)",
    }
    examples = {
        name: [id for (id,) in db.execute(f"SELECT id {query} ORDER BY id LIMIT {_SHOWN}")]
        for name, query in only.items()
    }
    removed, added = _pictures(db, a, common)
    views = View.open(a, first), View.open(b, second)
    images = [{(k, m) for k, gone in v.images.items() for m in gone} for v in views]
    return Difference(
        only_a=_count(db, only["only_a"]),
        only_b=_count(db, only["only_b"]),
        changed=count,
        columns={name: columns[name] for name in _COLUMNS if columns[name]},
        examples={**examples, "changed": changed},
        images_removed=removed,
        images_added=added,
        counts=_counts(first, second),
        excluded_samples=_apart(views[0].samples.keys(), views[1].samples.keys()),
        excluded_images=_apart(images[0], images[1]),
        recipe=_differing_keys(first.recipe, second.recipe),
    )


def _differing(one: bytes, other: bytes) -> Iterator[str]:
    for i, name in enumerate(_COLUMNS):
        if one[i * _DIGEST : (i + 1) * _DIGEST] != other[i * _DIGEST : (i + 1) * _DIGEST]:
            yield name


def _pictures(db: sqlite3.Connection, a: Path, common: list[Shard]) -> tuple[int, int]:
    """Distinct pictures in A alone and in B alone. One that an equal shard shows too is in both."""
    removed = "FROM image_a WHERE id NOT IN (SELECT id FROM image_b)"
    added = "FROM image_b WHERE id NOT IN (SELECT id FROM image_a)"
    for shard in common if _count(db, removed) or _count(db, added) else ():
        for batch in record_batches(a, shard):
            held = [(m["media_id"],) for row in batch.column("media").to_pylist() for m in row]
            db.executemany("DELETE FROM image_a WHERE id = ?", held)
            db.executemany("DELETE FROM image_b WHERE id = ?", held)
    return _count(db, removed), _count(db, added)


def _count(db: sqlite3.Connection, query: str) -> int:
    return db.execute(f"SELECT COUNT(*) {query}").fetchone()[0]


def _apart(one: Any, other: Any) -> tuple[int, int]:
    return len(one - other), len(other - one)


def _counts(a: Manifest, b: Manifest) -> dict[str, dict[str, tuple[int, int]]]:
    of: list[Counter[tuple[str, str]]] = []
    for manifest in (a, b):
        held = Counter[tuple[str, str]]()
        for shard in manifest.shards(format="arrow"):
            held[shard.source, shard.split] += shard.samples
        of.append(Counter({k: n - manifest.excluded(*k, "samples") for k, n in held.items()}))
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for key in sorted(of[0].keys() | of[1].keys()):
        found.setdefault(key[0], {})[key[1]] = of[0][key], of[1][key]
    return found


def _differing_keys(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    one, other = dict(_flat(a)), dict(_flat(b))
    keys = sorted(one.keys() | other.keys())
    return {k: (one.get(k), other.get(k)) for k in keys if one.get(k) != other.get(k)}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys; in lists of mappings by their name (`sources.caps.path`), else by number."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple) and value and all(isinstance(v, dict) for v in value):
        for n, inner in enumerate(value):
            yield from _flat(inner, f"{prefix}.{inner.get('name', n)}")
    else:
        yield prefix, value
