"""The same bytes on this machine and behind a URL; every part of a file, read."""

import uuid
from pathlib import Path

import fsspec
import pytest

from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.reading import Fault
from data_pipeline.build.read.row_reader import RowOptions, RowReader
from data_pipeline.build.read.rows.containers import read_rows
from data_pipeline.build.read.rows.row import Unit


class Rows:
    """What the tests do again and again."""

    @staticmethod
    def of(tree, name, parts=1, **caps):
        return [row for part in range(parts) for row in read_rows(tree, Unit(name, part, parts), **caps)]

    @staticmethod
    def reader(tree, kind="captions", **options):
        return RowReader("s", kind, "L", tree, RowOptions(**options))

    @classmethod
    def items(cls, tree, kind="captions", **options):
        reader = cls.reader(tree, kind, **options)
        return [item for unit in reader.units() for item in reader.read(unit)]

    @staticmethod
    def known(row):
        """A row or its fault, to compare."""
        value = row.value
        content = (value.reason, value.detail) if isinstance(value, Fault) else sorted(value.items(), key=str)
        return row.where, str(content), dict(row.images)


@pytest.fixture
def rows():
    return Rows


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path):
    """A function from files to the tree that holds them: in a folder, or in fsspec's memory."""
    if request.param == "local":

        def local(files: dict[str, bytes]) -> Tree:
            for name, data in files.items():
                path = tmp_path / "in" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            return Tree.at(tmp_path / "in")

        return local

    root = f"memory://{uuid.uuid4().hex}"

    def memory(files: dict[str, bytes]) -> Tree:
        fs = fsspec.filesystem("memory")
        for name, data in files.items():
            fs.pipe(f"{root}/{name}", data)
        return Tree.at(root)

    return memory


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "in"
    path.mkdir()
    return path
