"""The formats that rows come in, by the end of a file's name, and which files of a folder hold them.

To add one: a function (tree, unit, max_row) -> rows that keeps the rule of `row.py`, and a line in the table.
"""

import json
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch

from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.reading import Fault, Stamp
from data_pipeline.build.read.rows.columns import arrow, parquet
from data_pipeline.build.read.rows.json_file import json_file
from data_pipeline.build.read.rows.lines import compressed_lines, json_lines, separated_values
from data_pipeline.build.read.rows.row import MAX_ROW, Row, Unit, broken
from data_pipeline.build.read.rows.tar import tar
from data_pipeline.manifest import MANIFEST

STATE = "state.json"  # of a folder of `Dataset.save_to_disk`: it lists the files, others are caches
_ABOUT = (STATE, "dataset_info.json", "dataset_dict.json", "*_stats.json", "export.json")
SHARDS = "shards"  # where a dataset of this project keeps them
_MAX_STATE = 16 * 2**20
_MAX_MANIFEST = 256 * 2**20


@dataclass(frozen=True)
class Container:
    """How files of a format are read. A part has at least `least` bytes, a file at most `most` parts."""

    read: Callable[[Tree, Unit, int], Iterator[Row]]
    least: int
    most: int
    named: bool = False  # plain JSON is also used for other things: only files of telling names are rows

    def parts(self, nbytes: int) -> int:
        return max(1, min(self.most, nbytes // self.least))


_TABLE = Container(separated_values, 64 * 2**10, 8)
_LINES = Container(json_lines, 4 * 2**10, 64, named=True)
_PACKED = Container(compressed_lines, 2**20, 4, named=True)
_TAR = Container(tar, 4 * 2**20, 32)
CONTAINERS = {
    ".json": Container(json_file, 4 * 2**10, 8, named=True),
    ".jsonl": _LINES,
    ".ndjson": _LINES,
    ".jsonl.gz": _PACKED,
    ".json.gz": _PACKED,
    ".jsonl.zst": _PACKED,
    ".json.zst": _PACKED,
    ".csv": _TABLE,
    ".tsv": _TABLE,
    ".parquet": Container(parquet, 2**20, 64),
    ".arrow": Container(arrow, 2**20, 64),
    ".tar": _TAR,
    ".tar.gz": Container(tar, 64 * 2**20, 4),
    ".tgz": Container(tar, 64 * 2**20, 4),
}
SUFFIXES = tuple(CONTAINERS)
NAMED_SUFFIXES = tuple(s for s, c in CONTAINERS.items() if c.named)
_LARGE = 512 * 2**20  # plain JSON Lines of more than 64 parts of this size / 64: parts of 8 MiB


def container_of(name: str) -> Container | None:
    """By the longest ending in the table."""
    ending = max((s for s in CONTAINERS if name.lower().endswith(s)), key=len, default=None)
    return CONTAINERS[ending] if ending else None


def units_of(stamp: Stamp) -> list[Unit]:
    """The parts of a file; their number depends on its format and size alone."""
    container = container_of(stamp.name)
    parts = container.parts(stamp.size) if container else 1
    if container is _LINES and stamp.size > _LARGE:
        parts = stamp.size * 64 // _LARGE
    return [Unit(stamp.name, part, parts) for part in range(parts)]


def read_rows(tree: Tree, unit: Unit, max_row: int = MAX_ROW) -> Iterator[Row]:
    """The rows of a part. What the file system refuses is a fault like any other."""
    container = container_of(unit.file)
    if container is None:
        endings = ", ".join(SUFFIXES)
        yield broken(unit.file, "file", f"no known format of rows; read are {endings}", "unreadable file")
        return
    try:
        yield from container.read(tree, unit, max_row)
    except OSError as e:
        detail = f"cannot be read: {e.strerror or e}"
        yield broken(unit.file, f"part {unit.part + 1} of {unit.parts}", detail, "unreadable file")


def row_files(tree: Tree, patterns: Sequence[str], files: str | None = None) -> list[str]:
    """The files of rows below the tree, in a fixed order.

    With `files`, those whose names match that glob. Without: tars, Parquet, Arrow and tables; JSON whose
    names match `patterns`, or, where that leaves nothing, any JSON. Raises OSError, and ValueError for a
    damaged listing of `datasets` and for a dataset of this project that leaves out samples of its shards.
    """
    names = [tree.only] if tree.only is not None else _chosen(tree, patterns, files)
    _refuse_hidden(tree, names)
    return names


def _chosen(tree: Tree, patterns: Sequence[str], files: str | None) -> list[str]:
    names = tree.files(SUFFIXES)
    if files is not None:
        return [n for n in names if fnmatch(n, files) or fnmatch(posixpath.basename(n), files)]
    present = set(names)
    names = [n for n in _listed_by_datasets(tree, names) if not describes_others(n, present)]
    certain = [n for n in names if _is_certain(n, patterns)]
    return certain or names


def _refuse_hidden(tree: Tree, names: Sequence[str]) -> None:
    """Shards still hold what a dataset leaves out (opted out, copies), and it must not come back this way:
    neither from its folder, nor from `shards` below it, nor from one file in there."""
    folders = {posixpath.dirname(posixpath.join(tree.root, name)) for name in names}
    for shards in sorted(f for f in folders if posixpath.basename(f) == SHARDS):
        dataset = replace(tree, root=posixpath.dirname(shards), only=None)
        if dataset.exists(MANIFEST) and _leaves_out(dataset):
            raise ValueError(
                "a dataset of Fovea that leaves out samples its shards still hold.\n"
                "  Write what it shows, and read that:  fovea data export DIR --to fovea --out NEW"
            )


def _leaves_out(dataset: Tree) -> bool:
    data = dataset.read(MANIFEST, _MAX_MANIFEST)
    try:
        page = None if isinstance(data, Fault) else json.loads(data.decode())
    except (ValueError, RecursionError):
        return False  # a file of that name, and no dataset of ours
    return isinstance(page, dict) and "fingerprint" in page and bool(page.get("exclusions"))


def _is_certain(name: str, patterns: Sequence[str]) -> bool:
    container, base = container_of(name), posixpath.basename(name).lower()
    return container is not None and (not container.named or any(fnmatch(base, p) for p in patterns))


def describes_others(name: str, present: set[str]) -> bool:
    """Whether a file only tells of those in `present`: img2dataset writes a table without the images beside
    each tar, `datasets` pages about its Arrow files, and this project a shard again in other formats."""
    stem, ending = posixpath.splitext(name)
    beside = ending.lower() in (".parquet", ".csv", ".json") and f"{stem}.tar" in present
    again = ending in (".tar", ".parquet") and f"{stem}.arrow" in present
    return beside or again or any(fnmatch(posixpath.basename(name), p) for p in _ABOUT)


def _listed_by_datasets(tree: Tree, names: list[str]) -> list[str]:
    """The names, where a folder of `save_to_disk` gives the files that its state lists, in that order."""
    states = {posixpath.dirname(n): n for n in names if posixpath.basename(n) == STATE}
    arrows = {n for n in names if n.endswith(".arrow") and posixpath.dirname(n) in states}
    kept: list[str] = []
    for name in names:
        folder = posixpath.dirname(name)
        if states.get(folder) == name:
            listed = [posixpath.join(folder, n) for n in _data_files(tree, name)]
            if missing := [n for n in listed if n not in arrows]:
                raise ValueError(f"{name} lists {missing[0]!r}, which is not there")
            kept += listed
        elif name not in arrows:
            kept.append(name)
    return kept


def _data_files(tree: Tree, state: str) -> list[str]:
    data = tree.read(state, _MAX_STATE)
    try:
        if isinstance(data, Fault):
            raise ValueError(data.detail)
        page = json.loads(data.decode())
        if page.get("_indices_files"):
            raise ValueError("a selection of rows that was never applied: save it with flatten_indices()")
        found = [str(entry["filename"]) for entry in page["_data_files"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ValueError(f"{state} is not the state of a saved dataset: {e}") from None
    return found
