"""Containers against the libraries that write them: whole, in order, and the same in any number of parts."""

import csv
import gzip
import io
import json
import tarfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.reading import Stamp
from data_pipeline.build.read.rows import lines
from data_pipeline.build.read.rows.containers import CONTAINERS, row_files, units_of

RECORDS = [{"n": n, "text": f"line {n} \u00e9\U0001f600\n" + "x" * (n * 7 % 50)} for n in range(57)]
TABLE = pa.Table.from_pylist([{**r, "image": {"bytes": bytes([r["n"]]) * 9, "path": None}} for r in RECORDS])


def _tar(packed=False):
    out = io.BytesIO()
    with wds.TarWriter(out, encoder=True) as writer:
        for r in RECORDS:
            sample = {"__key__": f"d/{r['n']:05d}", "jpg": b"j" * (r["n"] * 37), "txt": r["text"]}
            writer.write({**sample, "json": {"n": r["n"]}})
    return gzip.compress(out.getvalue()) if packed else out.getvalue()


def _parquet():
    out = io.BytesIO()
    pq.write_table(TABLE, out, row_group_size=10)
    return out.getvalue()


def _arrow(kind):
    out = io.BytesIO()
    with getattr(pa.ipc, kind)(out, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=10)
    return out.getvalue()


def _csv(delimiter):
    out = io.StringIO()
    writer = csv.DictWriter(out, ["n", "text"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(RECORDS)
    return out.getvalue().encode()


def _coco():
    page = {
        "info": {"images": [1]},
        "annotations": [{"image_id": n % 50, "caption": f"c{n}", "id": n} for n in range(120)],
        "images": [{"id": n, "file_name": f"{n}.jpg", "license": n % 2} for n in range(50)],
        "licenses": [{"id": 1, "name": "BY"}],
        "categories": [{"x": [1, {"y": 2}]}],
    }
    return json.dumps(page, indent=1).encode()


LINES = "\n".join(map(json.dumps, RECORDS)).encode() + b"\n"
FILES = {
    "x.jsonl": LINES,
    "no_last_newline.jsonl": LINES[:-1],
    "blank.ndjson": b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\n\n"),
    "x.jsonl.gz": gzip.compress(LINES),
    "x.jsonl.zst": pa.compress(LINES, codec="zstd", asbytes=True),
    "x.json": json.dumps(RECORDS, ensure_ascii=False, indent=2).encode(),
    "lines.json": LINES,
    "coco.json": _coco(),
    "x.parquet": _parquet(),
    "file.arrow": _arrow("new_file"),
    "stream.arrow": _arrow("new_stream"),
    "x.tar": _tar(),
    "x.tar.gz": _tar(packed=True),
    "x.csv": _csv(","),
    "x.tsv": _csv("\t"),
    # Damaged ones: faults too belong to one part.
    "broken.jsonl": LINES[:900] + b'{"n": \n\xff\xfe\n[1]\n' + LINES[:300],
    "broken.json": json.dumps(RECORDS).encode()[:2000],
    "cut.tar": _tar()[:30_000],
    "cut_clean.tar": _tar()[: 2048 * 9],
    "cut.parquet": _parquet()[:-50],
    "cut.arrow": _arrow("new_stream")[:-700],
}


@pytest.mark.parametrize("name", FILES)
def test_the_union_of_the_parts_is_the_file_for_any_number_of_parts(place, rows, name):
    tree = place({name: FILES[name]})
    whole = [rows.known(r) for r in rows.of(tree, name)]
    assert whole
    for parts in (2, 3, 7, 100):
        found = [rows.known(r) for r in rows.of(tree, name, parts)]
        assert sorted(found, key=str) == sorted(whole, key=str), parts


@pytest.mark.parametrize(
    "name", [n for n in FILES if "broken" not in n and "cut" not in n and n != "coco.json"]
)
def test_every_row_is_there_in_order_with_its_values(place, rows, name):
    tree = place({name: FILES[name]})
    found = rows.of(tree, name)
    texts = [r.value.get("text", r.value.get("txt")) for r in found]
    assert texts == [r["text"] for r in RECORDS]
    assert [int(r.value["n"]) for r in found] == list(range(57))
    assert len({r.where for r in found}) == 57


def test_lines_of_large_files_are_named_by_their_offset_whatever_the_parts(place, rows, monkeypatch):
    monkeypatch.setattr(lines, "NUMBERED", 100)
    tree = place({"x.jsonl": LINES})
    for parts in (1, 2, 3, 11, 400):
        found = rows.of(tree, "x.jsonl", parts)
        assert [r.value["n"] for r in found] == list(range(57)), parts
        for row in found:
            at = int(row.where.removeprefix("byte "))
            assert json.loads(LINES[at:].split(b"\n")[0])["n"] == row.value["n"]


def test_members_of_a_tar_are_what_webdataset_reads(folder, rows):
    (folder / "x.tar").write_bytes(FILES["x.tar"])
    (folder / "x.tar.gz").write_bytes(FILES["x.tar.gz"])
    expected = list(wds.WebDataset(str(folder / "x.tar"), shardshuffle=False))
    for name in ("x.tar", "x.tar.gz"):
        found = rows.of(Tree.at(folder), name)
        assert [r.value["__key__"] for r in found] == [e["__key__"] for e in expected]
        assert [r.images["jpg"] for r in found] == [e["jpg"] for e in expected]
        assert [r.value["txt"].encode() for r in found] == [e["txt"] for e in expected]


def test_names_of_any_length_in_a_tar_are_read(folder, rows):
    expected = []
    for fmt in ("USTAR_FORMAT", "GNU_FORMAT", "PAX_FORMAT"):
        key = "k" * 90 if fmt == "USTAR_FORMAT" else "é" * 200
        with tarfile.open(folder / f"{fmt}.tar", "w", format=getattr(tarfile, fmt)) as tar:
            for suffix, data in (("txt", b"t"), ("png", b"p" * 600)):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        expected.append((key, "t", b"p" * 600))
        (row,) = rows.of(Tree.at(folder), f"{fmt}.tar")
        assert (row.value["__key__"], row.value["txt"], row.images["png"]) == expected[-1]


def test_coco_is_joined_as_a_join_in_memory_does(place, rows):
    page = json.loads(FILES["coco.json"])
    found = rows.of(place({"coco.json": FILES["coco.json"]}), "coco.json")
    for n, (row, image) in enumerate(zip(found, page["images"], strict=True)):
        captions = [a["caption"] for a in page["annotations"] if a["image_id"] == image["id"]]
        assert row.where == f"record {n}"
        assert (row.value["file_name"], row.value["captions"]) == (image["file_name"], captions)
        assert row.value["license"] == ({"id": 1, "name": "BY"} if n % 2 else None)


def test_a_saved_dataset_is_read_in_the_order_of_its_state_without_its_caches(folder, rows):
    table = {"caption": [f"c{n}" for n in range(30)], "image": [{"bytes": b"x", "path": "p"}] * 30}
    datasets.Dataset.from_dict(table).save_to_disk(folder / "d", num_shards=3)
    cache = next((folder / "d").glob("data-*.arrow")).read_bytes()
    (folder / "d/cache-123.arrow").write_bytes(cache)
    state = json.loads((folder / "d/state.json").read_text())
    state["_data_files"].reverse()
    (folder / "d/state.json").write_text(json.dumps(state))
    tree = Tree.at(folder)
    names = row_files(tree, ())
    assert names == [f"d/data-0000{n}-of-00003.arrow" for n in (2, 1, 0)]
    found = [r.value["caption"] for name in names for r in rows.of(tree, name)]
    assert found == [f"c{n}" for n in (*range(20, 30), *range(10, 20), *range(10))]
    assert len(datasets.load_from_disk(str(folder / "d"))) == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_data_files": [{"filename": "../x.arrow"}]}, "not there"),
        ({"_indices_files": [{"filename": "i.arrow"}]}, "flatten_indices"),
        ({"_data_files": 3}, "not the state"),
    ],
)
def test_a_damaged_state_of_a_dataset_is_refused(folder, change, message):
    datasets.Dataset.from_dict({"caption": ["a"]}).save_to_disk(folder)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, **change}))
    with pytest.raises(ValueError, match=message):
        row_files(Tree.at(folder), ())


def test_tables_and_reports_beside_the_tars_of_img2dataset_are_no_rows(place):
    tree = place(dict.fromkeys(("00000.tar", "00000.parquet", "00000_stats.json", "other.parquet"), b""))
    assert row_files(tree, ("*caption*.json",)) == ["00000.tar", "other.parquet"]
    assert row_files(tree, (), "*.json") == ["00000_stats.json"]


def test_json_is_taken_by_its_name_and_by_any_name_where_nothing_else_is(place):
    tree = place({"my_captions.json": b"[]", "settings.json": b"[]", "d/train.jsonl": b""})
    assert row_files(tree, ("*caption*.json",)) == ["my_captions.json"]
    assert row_files(tree, ("*qa*.json",)) == ["d/train.jsonl", "my_captions.json", "settings.json"]


def test_the_parts_depend_on_the_size_alone_and_stay_few():
    for ending, container in CONTAINERS.items():
        counts = [len(units_of(Stamp(f"x{ending}", size, "v"))) for size in (0, 10, 10**6, 10**9)]
        assert counts[0] == counts[1] == 1
        assert counts == sorted(counts)
        assert counts[-1] <= max(container.most, 120)
    assert len(units_of(Stamp("x.jsonl", 80 * 2**30, "v"))) == 80 * 128
