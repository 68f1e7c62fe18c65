"""The offset index of a tar: only that of its own tar, and whole, is read by."""

import pickle
import re
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from data_pipeline.stream.shards.opened import Shards
from data_pipeline.stream.source import Source
from shards import copied, resealed


def missing(index: Path) -> None:
    index.unlink()


def short(index: Path) -> None:
    index.write_bytes(index.read_bytes()[:-8])


def shifted(index: Path) -> None:
    """Every offset one block late: in order, in the archive, and wrong."""
    offsets = struct.unpack(f"<{len(index.read_bytes()) // 8}Q", index.read_bytes())
    index.write_bytes(struct.pack(f"<{len(offsets)}Q", 0, *(o + 512 for o in offsets[1:-1]), offsets[-1]))


def merged(index: Path) -> None:
    """A sample is said to begin at its picture: in order, whole blocks, and a header is there."""
    tar = index.with_suffix("")
    offsets = list(struct.unpack(f"<{index.stat().st_size // 8}Q", index.read_bytes()))
    with tarfile.open(tar) as opened_tar:
        picture = next(x for x in opened_tar.getmembers() if not x.name.endswith(".json"))
    before = max(n for n, o in enumerate(offsets) if o < picture.offset)
    offsets[before] = picture.offset
    index.write_bytes(struct.pack(f"<{len(offsets)}Q", *offsets))


def unordered(index: Path) -> None:
    offsets = list(struct.unpack(f"<{index.stat().st_size // 8}Q", index.read_bytes()))
    offsets[3], offsets[4] = offsets[4], offsets[3]
    index.write_bytes(struct.pack(f"<{len(offsets)}Q", *offsets))


def misaligned(index: Path) -> None:
    data = bytearray(index.read_bytes())
    data[8] += 1
    index.write_bytes(data)


def late(index: Path) -> None:
    index.write_bytes(struct.pack("<Q", 512) + index.read_bytes()[8:])


def beyond(index: Path) -> None:
    data = index.read_bytes()
    index.write_bytes(data[:-8] + struct.pack("<Q", 1 << 40))


@pytest.mark.parametrize("broken", [missing, short, shifted, merged, unordered, misaligned, late, beyond])
def test_an_index_that_is_not_its_tars_is_refused(built, tmp_path, broken) -> None:
    manifest = copied(built, tmp_path)
    tar = tmp_path / manifest.shards(format="webdataset")[0].path
    index = tar.with_name(f"{tar.name}.idx")
    broken(index)
    source = Source.open(tmp_path, manifest, "docs", format="webdataset")
    with pytest.raises(DataError, match=re.escape(index.name)):
        source[1]
    # A remote archive is not walked through: there the digest of its index is what counts.
    remote = Source.open(f"file://{tmp_path}", manifest, "docs", format="webdataset")
    with pytest.raises(DataError, match=r"\.idx (was altered|is missing)"):
        remote[1]
    if broken not in (missing, shifted, merged):  # which only a walk can tell
        unvouched = replace(manifest, tasks=(replace(manifest.tasks[0], files={}),))
        with pytest.raises(DataError, match="is not that of its tar"):
            Source.open(f"file://{tmp_path}", unvouched, "docs", format="webdataset")[1]
    # And where the manifest vouches for it, or says nothing of it.
    for vouched in (resealed(tmp_path, manifest), manifest):
        task = vouched.tasks[0]
        task = task if vouched is not manifest else replace(task, files={})
        source = Source.open(tmp_path, replace(vouched, tasks=(task,)), "docs", format="webdataset")
        with pytest.raises(DataError, match=re.escape(index.name)):
            source[1]


def test_a_proof_of_a_tar_is_one_of_its_index_too(built, tmp_path) -> None:
    manifest = copied(built, tmp_path)
    manifest = replace(manifest, tasks=(replace(manifest.tasks[0], files={}),))  # vouches for no index
    shards = Shards(tmp_path / "proofs")
    Source.open(tmp_path, manifest, "docs", format="webdataset", shards=shards)[0]
    shifted(tmp_path / f"{manifest.shards(format='webdataset')[0].path}.idx")
    again = pickle.loads(pickle.dumps(shards))
    with pytest.raises(DataError, match="is not that of its tar"):
        Source.open(tmp_path, manifest, "docs", format="webdataset", shards=again)[0]


def test_the_index_of_another_tar_is_refused(built, tmp_path) -> None:
    manifest = copied(built, tmp_path)
    first, second = (tmp_path / f"{s.path}.idx" for s in manifest.shards(format="webdataset")[:2])
    first.write_bytes(second.read_bytes())
    for known in (manifest, resealed(tmp_path, manifest)):
        with pytest.raises(DataError, match=re.escape(first.name)):
            Source.open(tmp_path, known, "docs", format="webdataset")[1]
