"""A damaged shard is named, or its damaged rows are broken samples: never other samples."""

import io
import json
import os
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_pipeline.errors import DataError
from data_pipeline.stream.faults import BrokenSample
from data_pipeline.stream.shards.opened import Shards
from data_pipeline.stream.source import Source
from data_pipeline.view import Exclusion, exclude
from shards import FORMATS, PER_SHARD, build, copied, opened, resealed


def test_a_tar_that_shrinks_while_it_is_read_is_named(built, tmp_path) -> None:
    copied(built, tmp_path)
    source = opened(tmp_path, "webdataset")
    source[0]
    os.truncate(tmp_path / source.place(1)[0], 0)
    with pytest.raises(DataError, match=r"00000\.tar ends at byte"):
        source[1]


@pytest.mark.parametrize("format", FORMATS)
def test_a_flipped_byte_names_the_shard(built, tmp_path, format: str) -> None:
    manifest = copied(built, tmp_path)
    path = tmp_path / manifest.shards(format=format)[1].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    source = Source.open(tmp_path, manifest, "docs", format=format)
    source[0]
    with pytest.raises(DataError, match=f"{path.name} was altered"):
        source[PER_SHARD]
    # Of a remote shard the digest is looked at where that is asked for.
    remote = Source.open(
        f"file://{tmp_path}", manifest, "docs", format=format, shards=Shards(remote_digests=True)
    )
    remote[0]
    with pytest.raises(DataError, match=f"{path.name} was altered"):
        remote[PER_SHARD]


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_shard_is_named(built, tmp_path, format: str, scheme: str) -> None:
    manifest = copied(built, tmp_path)
    path = tmp_path / manifest.shards(format=format)[1].path
    path.write_bytes(path.read_bytes()[:-11_000])  # more than a tar's padding
    with pytest.raises(DataError, match=f"{path.name} has "):
        Source.open(f"{scheme}{tmp_path}", manifest, "docs", format=format)[PER_SHARD]
    with pytest.raises(DataError, match=path.name):  # truncated before the manifest was written
        Source.open(f"{scheme}{tmp_path}", resealed(tmp_path, manifest), "docs", format=format)[PER_SHARD]


BAD_COLUMNS = {
    "no JSON": b"{not json",
    "no object": b"[1, 2]",
    "too deep": b"[" * 100_000,
    "no UTF-8": b'{"id": "\xff"}',
    "missing columns": b'{"id": "x"}',
    "another schema": lambda row: {**row, "schema_version": 99},
    "unknown column": lambda row: {**row, "segments": [{**row["segments"][0], "surprise": 1}]},
    "a number for text": lambda row: {**row, "segments": [{**row["segments"][0], "text": 5}]},
    "a text for a number": lambda row: {**row, "lang_score": "high"},
    "a number for a media's id": lambda row: {**row, "media": [{**x, "media_id": 5} for x in row["media"]]},
    "no id": lambda row: {**row, "id": None},
    "a picture too few": lambda row: {
        **row,
        "segments": [{**row["segments"][0], "type": "image", "media": 9}],
    },
}


@pytest.mark.parametrize("bad", BAD_COLUMNS)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_tars_row_that_is_no_sample_is_one_broken_sample(tmp_path, written, bad: str, scheme: str) -> None:
    manifest = build(tmp_path, written[:5], ("arrow", "webdataset"))
    tar = tmp_path / manifest.shards(format="webdataset")[0].path
    with tarfile.open(tar) as old:
        members = [(x, old.extractfile(x).read()) for x in old.getmembers()]
    offsets, row, out = [], -1, io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as new:
        for info, data in members:
            if info.name.endswith(".json"):
                row += 1
                offsets.append(new.offset)
                if row == 2:
                    made = BAD_COLUMNS[bad]
                    data = made if isinstance(made, bytes) else json.dumps(made(json.loads(data))).encode()
            info.size = len(data)
            new.addfile(info, io.BytesIO(data))
        offsets.append(new.offset)
    tar.write_bytes(out.getvalue())
    tar.with_name(f"{tar.name}.idx").write_bytes(struct.pack(f"<{len(offsets)}Q", *offsets))
    source = Source.open(f"{scheme}{tmp_path}", resealed(tmp_path, manifest), "docs", format="webdataset")
    gone = exclude(tmp_path, "dedup", [Exclusion(written[4].id, None, "copy")], {}).exclusions
    hiding = replace(resealed(tmp_path, manifest), exclusions=gone)
    for read in (source.__getitem__, source.without_pixels):
        with pytest.raises(BrokenSample, match="row cannot be decoded"):
            read(2)
    assert [source[i] for i in (0, 1, 3, 4)] == [written[i] for i in (0, 1, 3, 4)]
    hidden = Source.open(f"{scheme}{tmp_path}", hiding, "docs", format="webdataset")
    assert [hidden[i] for i in (0, 1, 3)] == [written[i] for i in (0, 1, 3)]


def member_named(tar: Path, ending: str) -> tarfile.TarInfo:
    with tarfile.open(tar) as opened_tar:
        return next(x for x in opened_tar.getmembers() if x.name.endswith(ending))


HEADERS = {  # the place in the header, and what is put there; the checksum is made to fit
    "a link": (156, b"2"),
    "a folder": (156, b"5"),
    "a name that goes on elsewhere": (345, b"x"),
    "a size that makes no headway": (124, b"-0000001001\0"),
    "a size beyond the sample": (124, b"77777777777\0"),
    "a size that is no number": (124, b"many\0"),
    "another sample's name": (0, b"zz"),
    "a wrong checksum": (148, b"000001\0 "),
}


@pytest.mark.parametrize("ending", [".json", ".png"])
@pytest.mark.parametrize("broken", HEADERS)
def test_a_header_that_is_no_file_of_its_sample_is_refused(
    tmp_path, written, broken: str, ending: str
) -> None:
    """Here the shard: its offsets were followed when it was proven. Of a remote one, the sample."""
    manifest = build(tmp_path, written[1:4], ("arrow", "webdataset"))
    tar = tmp_path / manifest.shards(format="webdataset")[0].path
    data, at = bytearray(tar.read_bytes()), member_named(tar, ending).offset
    place, value = HEADERS[broken]
    data[at + place : at + place + len(value)] = value
    if broken != "a wrong checksum":
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    tar.write_bytes(data)
    manifest = resealed(tmp_path, manifest)
    with pytest.raises(DataError, match="is not that of its tar"):
        Source.open(tmp_path, manifest, "docs", format="webdataset")[2]
    remote = Source.open(f"file://{tmp_path}", manifest, "docs", format="webdataset")
    for read in (remote.__getitem__, lambda i: remote.picture(i, 0)):
        with pytest.raises(BrokenSample):
            read(0)
    if ending == ".json" and "name" not in broken:
        with pytest.raises(BrokenSample):
            remote.without_pixels(0)
    assert remote[2] == written[3]


@pytest.mark.parametrize("kind", ["schema", "count"])
def test_a_parquet_file_that_is_no_shard_is_refused(built, tmp_path, kind: str) -> None:
    manifest = copied(built, tmp_path)
    path = tmp_path / manifest.shards(format="parquet")[0].path
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["lineage"]) if kind == "schema" else table[:9], path)
    said = "does not have the schema" if kind == "schema" else "holds 9 samples, the manifest says 40"
    with pytest.raises(DataError, match=said):
        Source.open(tmp_path, resealed(tmp_path, manifest), "docs", format="parquet")[0]


def test_a_row_group_that_cannot_be_decoded_is_broken_samples(built, tmp_path) -> None:
    manifest = copied(built, tmp_path)
    path = tmp_path / manifest.shards(format="parquet")[0].path
    at = pq.ParquetFile(path).metadata.row_group(0).column(0).dictionary_page_offset
    data = bytearray(path.read_bytes())
    data[at : at + 40] = bytes([0xA5]) * 40
    path.write_bytes(data)
    source = Source.open(tmp_path, resealed(tmp_path, manifest), "docs", format="parquet")
    with pytest.raises(BrokenSample):
        source[0]
    assert source[PER_SHARD].id
