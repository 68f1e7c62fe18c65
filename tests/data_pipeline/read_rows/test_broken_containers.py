"""Damaged and hostile files of rows: a counted reason in their place, and what came before is kept."""

import contextlib
import csv
import gzip
import json
import pickle
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.reading import Fault
from data_pipeline.build.read.rows import lines
from hostile.program import Program
from hostile.tars import special, tar_of


def seen(found):
    """(where, reason) of faults, and the keys of sound rows."""
    return [
        (r.where, r.value.reason) if isinstance(r.value, Fault) else r.value.get("__key__", r.where)
        for r in found
    ]


GOOD = (("a.jpg", b"A" * 700), ("a.txt", b"one"), ("b.jpg", b"B" * 700), ("b.txt", b"two"))


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (None, ["a", "b"]),
        (0, [("byte 0", "broken tar")]),
        # A header is 512 bytes, the picture 1024, the text 512 with its padding.
        (512 + 1024 + 1024, ["a", ("byte 2560, sample a", "broken tar")]),
        (2560 + 100, ["a", ("byte 2660, sample a", "broken tar")]),
        (2560 + 512 + 300, ["a", ("byte 3372, sample b", "broken tar")]),
        (2560 + 1536, ["a", "b", ("byte 4096, sample b", "broken tar")]),
        (5120, ["a", "b", ("byte 5120, sample b", "broken tar")]),
    ],
)
def test_a_tar_that_was_cut_says_so_and_gives_what_came_before(place, rows, cut, expected):
    data = tar_of(*GOOD)
    found = rows.of(place({"x.tar": data[:cut]}), "x.tar")
    assert seen(found) == expected
    if expected[0] == "a":
        assert (found[0].value["txt"], found[0].images["jpg"]) == ("one", b"A" * 700)


def test_every_place_where_a_tar_can_be_cut_gives_a_fault_and_no_wrong_byte(folder, rows):
    data = tar_of(*GOOD)
    for cut in range(0, len(data) - 1024, 97):
        (folder / "x.tar").write_bytes(data[:cut])
        *kept, last = rows.of(Tree.at(folder), "x.tar")
        assert isinstance(last.value, Fault), cut
        for row in kept:
            assert row.images["jpg"] == row.value["__key__"].upper().encode() * 700


def test_a_tar_that_is_none_or_breaks_within_is_named(place, rows):
    files = {"text.tar": b"hello " * 300, "middle.tar": tar_of(*GOOD[:2], end=False) + b"\1" * 2048}
    tree = place(files)
    assert seen(rows.of(tree, "text.tar")) == [("byte 512", "broken tar")]
    assert seen(rows.of(tree, "middle.tar")) == ["a", ("byte 3072, sample a", "broken tar")]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("b.pyd", b"x")], "refused member"),
        ([("b.meta.pickle", b"x")], "refused member"),
        ([("b.npy", b"x")], "refused member"),
        ([("b.pth", b"x")], "refused member"),
        ([special("b.png", tarfile.SYMTYPE)], "refused member"),
        ([special("b.png", tarfile.LNKTYPE)], "refused member"),
        ([special("b.png", tarfile.CHRTYPE)], "refused member"),
        ([special("b.png", tarfile.FIFOTYPE)], "refused member"),
        ([special("b.png", tarfile.GNUTYPE_SPARSE)], "refused member"),
        ([("b.txt", b"again")], "duplicate member"),
        ([("b.json", b"{")], "invalid record"),
        ([("b.json", b"[1]")], "invalid record"),
        ([("b.caption", b"\xff\xfe")], "invalid record"),
        ([("b.png", b"P" * 5000)], "image file too large"),
        ([("b.json", b" " * 3000)], "row too large"),
    ],
)
def test_a_member_that_is_refused_costs_its_sample_alone(place, rows, members, reason):
    data = tar_of(*GOOD[:2], ("b.jpg", b"B"), ("b.txt", b"two"), *members, ("c.txt", b"three"))
    tree = place({"x.tar": data})
    tree = Tree(tree.fs, tree.root, max_bytes=4000)
    assert seen(rows.of(tree, "x.tar", max_row=2000)) == ["a", ("sample b", reason), "c"]


@pytest.mark.parametrize("name", ["/abs.jpg", "../up.jpg", "a/../../up.jpg"])
def test_members_whose_names_leave_the_folder_are_refused_and_nothing_is_written(folder, rows, name):
    (folder / "x.tar").write_bytes(tar_of((name, b"x"), ("ok.txt", b"t")))
    (first, second) = rows.of(Tree.at(folder), "x.tar")
    assert first.value.reason == "refused member"
    assert second.value["txt"] == "t"
    assert [p.name for p in folder.parent.rglob("*") if p.is_file()] == ["x.tar"]


def test_a_key_that_comes_again_is_a_fault(place, rows):
    data = tar_of(("a.txt", b"1"), ("b.txt", b"2"), ("a.jpg", b"3"), ("c.txt", b"4"))
    assert seen(rows.of(place({"x.tar": data}), "x.tar")) == ["a", "b", ("sample a", "duplicate key"), "c"]


def test_members_of_other_formats_are_named_and_not_read(place, rows):
    data = tar_of(
        ("a.txt", b"1"), ("a.mp4", b"2"), ("._a.jpg", b"3"), ("README", b"4"), special("d.x", tarfile.DIRTYPE)
    )
    found = rows.of(place({"x.tar": data}), "x.tar")
    expected = [("member '._a.jpg'", "refused member"), ("member 'README'", "refused member"), "a"]
    assert seen(found) == expected
    assert found[-1].value == {"txt": "1", "__key__": "a", "__unread__": ["mp4"]}


def test_a_header_that_states_a_huge_size_allocates_nothing(folder, rows):
    for name, type_ in (("a.txt", tarfile.REGTYPE), ("L", tarfile.GNUTYPE_LONGNAME), ("x", tarfile.XHDTYPE)):
        info = special(name, type_, size=2**45)
        (folder / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"x" * 600)
        assert seen(rows.of(Tree.at(folder), "x.tar"))[0][1] == "broken tar"


def test_a_pickle_in_a_tar_is_not_opened(folder, rows):
    ran = folder / "ran"
    data = pickle.dumps(Program(ran))
    names = ("pyd", "pkl", "pickle", "pth", "npy", "npz", "cls", "txt", "json")
    members = [(f"{n}.{ending}", data) for n, ending in enumerate(names)]
    (folder / "x.tar").write_bytes(tar_of(*members))
    assert all(isinstance(r.value, Fault) for r in rows.of(Tree.at(folder), "x.tar"))
    assert not ran.exists()
    with contextlib.suppress(OSError):
        pickle.loads(data).close()
    assert ran.exists(), "the pickle would have run"


def test_an_arrow_file_that_names_a_pickled_type_runs_nothing(folder, rows):
    ran = folder / "ran"
    marks = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Program(ran)),
    }
    schema = pa.schema([pa.field("text", pa.string(), metadata=marks)])
    with pa.ipc.new_stream(folder / "x.arrow", schema) as writer:
        writer.write_batch(pa.record_batch([["t"]], schema=schema))
    pq.write_table(pa.table({"text": ["t"]}, schema=schema), folder / "x.parquet")
    for name in ("x.arrow", "x.parquet"):
        assert [r.value for r in rows.of(Tree.at(folder), name)] == [{"text": "t"}]
    assert not ran.exists()


def test_a_bad_line_costs_that_line_and_its_number_is_the_editors(place, rows):
    data = (
        b'{"a": 1}\n{"a": \n\n\xff\n"text"\n{"a": NaN}\n'
        + b"[" * 100_000
        + b'\n{"a": '
        + b"9" * 5000
        + b'}\n{"a": 2}'
    )
    found = rows.of(place({"x.jsonl": data}), "x.jsonl")
    bad = [(r.where, r.value.detail.split(":")[0]) for r in found if isinstance(r.value, Fault)]
    assert bad == [
        ("line 2", "not JSON"),
        ("line 4", "not UTF-8"),
        ("line 5", "expected a mapping, found str"),
        ("line 7", "not JSON"),
        ("line 8", "not JSON"),
    ]
    assert [r.where for r in found if not isinstance(r.value, Fault)] == ["line 1", "line 6", "line 9"]


def test_a_line_above_the_cap_costs_that_line(place, rows):
    data = b'{"a": 1}\n{"a": "' + b"x" * 5000 + b'"}\n{"a": 2}\n'
    for name, packed in (("x.jsonl", data), ("x.jsonl.gz", gzip.compress(data))):
        found = rows.of(place({name: packed}), name, max_row=1000)
        assert [r.value.reason if isinstance(r.value, Fault) else r.value["a"] for r in found] == [
            1,
            "row too large",
            2,
        ]


def test_a_line_without_an_end_is_given_up(place, rows, monkeypatch):
    monkeypatch.setattr(lines, "_MAX_SKIPPED", 2**20)
    bomb = gzip.compress(b'{"a": 1}\n' + b"x" * (5 * 2**20) + b'\n{"a": 2}\n')
    found = rows.of(place({"x.jsonl.gz": bomb}), "x.jsonl.gz", max_row=1000)
    assert [r.value.detail[:30] if isinstance(r.value, Fault) else r.value["a"] for r in found] == [
        1, "a line of more than 1,000 byte", "the line does not end; the res"]  # fmt: skip


def test_a_packed_file_that_was_cut_keeps_what_came_before(place, rows):
    data = b"".join(b'{"a": "%d"}\n' % (n * 7919 % 1000003) for n in range(3000))
    for name, packed in (
        ("x.jsonl.gz", gzip.compress(data)),
        ("x.jsonl.zst", pa.compress(data, codec="zstd", asbytes=True)),
    ):
        for broken in (packed[: len(packed) * 2 // 3], packed[:8], b"not packed" * 10):
            *kept, last = rows.of(place({name: broken}), name)
            assert last.value.reason == "unreadable file", name
            assert [r.value for r in kept] == [json.loads(x) for x in data.splitlines()[: len(kept)]]


@pytest.mark.parametrize(
    ("data", "kept", "detail"),
    [
        (b'[{"a": 1}, {"a": 2}', 2, "cut off"),
        (b'[{"a": 1}, {"a": 2', 1, "cut off"),
        (b'[{"a": 1} {"a": 2}]', 1, "expected ']'"),
        (b'[{"a": 1}, ]', 1, "Expecting value"),
        (b'[{"a": 1}]]', 1, "after the list's end"),
        (b'[{"a": 1}, {"a": tru}, {"a": 3}]' + b" " * 100, 1, "Expecting value"),
        (b'[{"a": 1}, {"a": "\xff"}]', 0, "not UTF-8"),
        (b'[{"a": 1}, ' + b"[" * 100_000, 1, "recursion"),
        (b'[{"a": 1}, {"a": "' + b"x" * 5000 + b'"}, {"a": 3}]', 1, "more than 1,000 characters"),
        (b"", 0, "empty"),
        (b"hello", 0, "begins with 'h'"),
        (b'{"a": 1}', 0, "expected a list of records, found a mapping"),
        (b'{"images": [{"id": 1}], "annotations": [', 1, "cut off"),
        (b'{"images": [{"id": 1}], "other": [1, 2]}', 0, "expected a list of records"),
    ],
)
def test_broken_json_is_a_fault_at_its_place_and_rows_before_it_are_kept(place, rows, data, kept, detail):
    found = rows.of(place({"x.json": data}), "x.json", max_row=1000)
    sound = [r for r in found if not isinstance(r.value, Fault)]
    (fault,) = [r.value for r in found if isinstance(r.value, Fault)]
    assert (len(sound), fault.reason) == (kept, "invalid record")
    assert detail in fault.detail


def test_values_of_every_length_around_the_buffer_are_read_whole(place, rows, monkeypatch):
    monkeypatch.setattr("data_pipeline.build.read.rows.json_text._CHUNK", 7)
    records = [{"a": 'é\\"x' * n, "b": n * 12345, "c": [None, True, {"d": -1.5e-7}]} for n in range(40)]
    page = json.dumps(records, ensure_ascii=False, indent=1).encode()
    assert [r.value for r in rows.of(place({"x.json": page}), "x.json")] == records
    assert [r.value.detail[:28] for r in rows.of(place({"y.json": b"[1234567, 12345678901]"}), "y.json")] == [
        "expected a mapping, found in"] * 2  # fmt: skip


def test_flipped_bytes_of_columns_are_faults_and_never_end_the_process(folder, rows):
    table = pa.table({"text": [f"text {n}" * 20 for n in range(200)], "n": range(200)})
    pq.write_table(table, folder / "x.parquet", row_group_size=50, compression="NONE")
    with pa.ipc.new_file(folder / "x.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=50)
    for name in ("x.parquet", "x.arrow"):
        sound = (folder / name).read_bytes()
        for at in range(0, len(sound), len(sound) // 60):
            flipped = sound[:at] + bytes([sound[at] ^ 0x80, sound[at + 1] ^ 0xFF]) + sound[at + 2 :]
            (folder / name).write_bytes(flipped[: len(sound)])
            assert rows.of(Tree.at(folder), name)
        for cut in (0, 3, 200, len(sound) // 2, len(sound) - 5):
            (folder / name).write_bytes(sound[:cut])
            assert any(isinstance(r.value, Fault) for r in rows.of(Tree.at(folder), name)), cut


def test_text_that_is_no_utf8_in_a_column_costs_its_row(folder, rows):
    texts = pa.array([b"one", b"\xff\xfe", b"three"]).view(pa.string())
    for name in ("x.parquet", "x.arrow"):
        table = pa.table({"text": texts})
        if name == "x.parquet":
            pq.write_table(table, folder / name)
            found = rows.of(Tree.at(folder), name)
            assert [r.where for r in found if isinstance(r.value, Fault)] == ["row 1"]
            assert [r.value["text"] for r in found if not isinstance(r.value, Fault)] == ["one", "three"]
        else:
            with pa.ipc.new_stream(folder / name, table.schema) as writer:
                writer.write_table(table)
            assert any(isinstance(r.value, Fault) for r in rows.of(Tree.at(folder), name))


def test_arrow_offsets_beyond_their_buffer_are_refused(folder, rows):
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1_000_000, 6)))
    array = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"abcdef")])
    with pa.ipc.new_stream(folder / "x.arrow", pa.schema([("text", pa.string())])) as writer:
        writer.write_batch(pa.record_batch([array], ["text"]))
    (row,) = rows.of(Tree.at(folder), "x.arrow")
    assert (row.value.reason, row.where) == ("unreadable file", "row 0")


def test_a_table_with_too_many_fields_or_a_broken_quote_says_where(place, rows):
    csv.field_size_limit(2**30)  # as another reader of this process may have left it
    tree = place({"x.csv": b"a,b\n1,2\n1,2,3\n4,5\n", "bad.csv": b'a,b\n1,"' + b"x" * 200_000})
    assert [r.where for r in rows.of(tree, "x.csv") if isinstance(r.value, Fault)] == ["line 3"]
    assert "field larger" in rows.of(tree, "bad.csv")[-1].value.detail


def test_a_file_of_another_format_is_named_with_the_formats_that_are_read(place, rows):
    (row,) = rows.of(place({"x.xlsx": b"PK"}), "x.xlsx")
    assert ".parquet" in row.value.detail
    (row,) = rows.of(place({"x.xlsx": b"PK"}), "gone.jsonl")
    assert row.value.reason == "unreadable file"
