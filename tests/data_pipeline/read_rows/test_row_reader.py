"""The reader as the build uses it: real captions in every format, and what a result depends on."""

import contextlib
import csv
import functools
import http.server
import io
import json
import os
import random
import threading
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from data_pipeline.build.read.files import Tree
from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.build.run import build
from data_pipeline.errors import ConfigError, DataError
from data_pipeline.view import samples

REAL = Path(__file__).parents[3] / "../shared/realdata"
here = pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/realdata beside the repository")


@pytest.fixture(scope="module")
def pictures():
    """Ten real photographs with their captions: (name, bytes, captions)."""
    records = json.loads((REAL / "coco_cc/captions.json").read_text())[:10]
    return [(r["file"], (REAL / "coco_cc" / r["file"]).read_bytes(), r["captions"]) for r in records]


def write_tar(folder, pictures):
    with wds.TarWriter(str(folder / "00000.tar")) as writer:
        for name, data, captions in pictures:
            about = {"caption": captions[0], "url": f"https://h/{name}", "key": name, "status": "success"}
            writer.write({"__key__": name.split(".")[0], "jpg": data, "txt": captions[0], "json": about})
    (folder / "00000_stats.json").write_text("{}")
    pq.write_table(pa.table({"url": ["u"], "caption": ["c"]}), folder / "00000.parquet")


def write_parquet(folder, pictures):
    images = [{"bytes": data, "path": name} for name, data, _ in pictures]
    table = pa.table({"image": images, "captions": [c for *_, c in pictures]})
    pq.write_table(table, folder / "x.parquet", row_group_size=3)


def write_saved(folder, pictures):
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    images = [{"bytes": data, "path": None} for _, data, _ in pictures]
    rows = {"image": images, "caption": [c[0] for *_, c in pictures]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder, num_shards=2)


def write_lines(folder, pictures):
    _write_pictures(folder / "images", pictures)
    lines = [json.dumps({"image": name, "captions": c}) for name, _, c in pictures]
    (folder / "captions.jsonl").write_text("\n".join(lines))


def write_coco(folder, pictures):
    _write_pictures(folder, pictures)
    page = {
        "images": [{"id": n, "file_name": p[0]} for n, p in enumerate(pictures)],
        "annotations": [{"image_id": n, "caption": c} for n, p in enumerate(pictures) for c in p[2]],
    }
    (folder / "captions_val.json").write_text(json.dumps(page))


def write_table(folder, pictures):
    _write_pictures(folder, pictures)
    out = io.StringIO()
    csv.writer(out).writerows([["file", "caption"], *([name, c[0]] for name, _, c in pictures)])
    (folder / "x.csv").write_text(out.getvalue())


def _write_pictures(folder, pictures):
    folder.mkdir(exist_ok=True)
    for name, data, _ in pictures:
        (folder / name).write_bytes(data)


WRITERS = [write_tar, write_parquet, write_saved, write_lines, write_coco, write_table]


@here
@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_the_same_pairs_come_out_of_every_format_here_and_behind_a_url(
    rows, folder, pictures, write, protocol
):
    write(folder, pictures)
    tree = Tree.at(folder)
    if protocol == "memory":
        fsspec.filesystem("memory").put(str(folder), f"/{folder.parent.name}", recursive=True)
        tree = Tree.at(f"memory://{folder.parent.name}")
    items = rows.items(tree)
    assert [i.fault for i in items] == [None] * 10
    found = {i.sample.image_bytes[0]: [s.text for s in i.sample.segments[1:]] for i in items}
    assert set(found) == {data for _, data, _ in pictures}
    for _, data, captions in pictures:
        texts = [c.strip() for c in captions]
        assert found[data] == texts[: len(found[data])]
    assert len({i.sample.id for i in items}) == 10
    assert all(i.sample.license == "L" for i in items)


@here
def test_a_sample_is_the_same_whether_its_files_lie_here_or_behind_a_url(rows, folder, pictures):
    write_tar(folder, pictures)
    fsspec.filesystem("memory").put(str(folder), "/same", recursive=True)
    here, there = (rows.items(Tree.at(p)) for p in (folder, "memory://same"))
    assert [i.sample for i in here] == [i.sample for i in there]


@here
def test_webdataset_and_the_reader_agree_on_keys_and_bytes(rows, folder, pictures):
    write_tar(folder, pictures)
    expected = {r["__key__"]: r["jpg"] for r in wds.WebDataset(str(folder / "00000.tar"), shardshuffle=False)}
    found = {
        json.loads(i.sample.general_metadata)["__key__"]: i.sample.image_bytes[0]
        for i in rows.items(Tree.at(folder))
    }
    assert found == expected


def test_what_a_result_depends_on_is_listed_with_its_version(rows, folder):
    (folder / "images").mkdir()
    for name in ("captions.json", "a.jpg", "images/b.png", "images/c.txt", "other.json"):
        (folder / name).write_bytes(b"[]")
    reader = rows.reader(Tree.at(folder))
    before = reader.inputs()
    assert [s.name for s in before] == ["captions.json", "a.jpg", "images/b.png"]
    os.utime(folder / "images/b.png", ns=(5, 5))
    assert [a == b for a, b in zip(before, reader.inputs(), strict=True)] == [True, True, False]


def test_an_empty_folder_a_wrong_glob_and_a_wrong_layout_say_what_is_allowed(rows, folder):
    with pytest.raises(DataError, match=r"no file of rows[\s\S]*\.parquet"):
        rows.reader(Tree.at(folder)).units()
    (folder / "x.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"match '\*\.csv'"):
        rows.reader(Tree.at(folder), files="*.csv").inputs()
    with pytest.raises(ConfigError, match="layout 'llava' is none of kind captions"):
        rows.reader(Tree.at(folder), layout="llava")


def test_a_damaged_listing_of_a_saved_dataset_stops_with_the_reason(rows, folder):
    datasets.Dataset.from_dict({"caption": ["a"]}).save_to_disk(folder)
    (folder / "state.json").write_text("{}")
    with pytest.raises(DataError, match="not the state of a saved dataset"):
        rows.reader(Tree.at(folder)).units()


def test_a_layout_that_the_recipe_names_is_not_guessed(rows, folder):
    (folder / "x.jsonl").write_text(
        '{"texts": ["a long text"], "images": [null], "sequence": [{"text": "b"}]}'
    )
    assert rows.items(Tree.at(folder), "interleaved")[0].sample.text == "a long text"
    assert rows.items(Tree.at(folder), "interleaved", layout="sequence")[0].sample.text == "b"


def test_a_document_is_one_sample_however_long(rows, folder):
    sequence = [{"text": f"paragraph {n} " * 50} for n in range(200)]
    (folder / "interleaved.jsonl").write_text(json.dumps({"title": "T", "sequence": sequence}))
    (item,) = rows.items(Tree.at(folder), "interleaved")
    assert len(item.sample.segments) == 201
    assert item.where == "line 1"


@here
@pytest.mark.parametrize("write", [write_tar, write_saved])
def test_a_build_reads_them_to_the_end_and_its_books_balance(folder, tmp_path, pictures, write):
    write(folder, pictures)
    source = {"name": "s", "kind": "captions", "path": "."}
    recipe = BuildRecipe(name="t", tasks=3, heldout=0.0, sources=[source])
    manifest = build(recipe, tmp_path / "out", root=folder)
    assert (manifest.funnel["s"].read, manifest.funnel["s"].written) == (10, 10)
    shards = [tmp_path / "out" / s.path for s in manifest.shards(format="arrow")]
    kept = [row for s in shards for row in pa.ipc.open_file(pa.memory_map(str(s))).read_all().to_pylist()]
    assert {row["images"][0]["bytes"] for row in kept} == {data for _, data, _ in pictures}


@here
def test_json_under_a_name_that_does_not_tell_is_said_unless_another_source_reads_it(tmp_path, pictures):
    pairs = tmp_path / "in"
    pairs.mkdir()
    write_parquet(pairs, pictures)
    write_lines(pairs, pictures[:2])
    (pairs / "captions.jsonl").rename(pairs / "pairs.jsonl")
    (pairs / "dataset_info.json").write_text("{}")
    one = {"name": "all", "kind": "captions", "path": "."}
    other = {"name": "lines", "kind": "captions", "path": "pairs.jsonl"}
    chosen = {**one, "files": "*.parquet"}
    for sources, unread in [([one], ("pairs.jsonl",)), ([one, other], ()), ([chosen], ())]:
        recipe = BuildRecipe.model_validate({"name": "t", "tasks": 1, "sources": sources})
        out = tmp_path / "out" / str(len(sources)) / str(len(unread))
        assert build(recipe, out, root=pairs).unread == unread


class Silent(http.server.SimpleHTTPRequestHandler):
    """A server of files, each from its beginning alone."""

    def copyfile(self, source, outputfile):
        with contextlib.suppress(OSError):  # who asked for a part takes no more
            super().copyfile(source, outputfile)

    def log_message(self, *args):
        pass


class Ranges(Silent):
    """A server of files that answers requests for a range, as object stores and CDNs do."""

    def send_head(self):
        path, wanted = Path(self.translate_path(self.path)), self.headers.get("Range")
        if not path.is_file() or wanted is None:
            return super().send_head()
        data = path.read_bytes()
        start, end = wanted.removeprefix("bytes=").split("-")
        part = data[int(start) : int(end or len(data)) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{int(start) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        return io.BytesIO(part)


@pytest.fixture
def served(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Ranges, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@here
def test_a_web_server_gives_the_same_as_the_folder_that_it_serves(served, pictures, tmp_path):
    folder, url = served
    write_tar(folder, pictures[:3])
    (folder / "page.html").write_text("<p>Some words of a page that are enough.</p><img src=images/0.jpg>")
    (folder / "images").mkdir()
    (folder / "images" / "0.jpg").write_bytes(pictures[4][1])
    found = []
    for root in (url + "/", str(folder)):
        tar = {"name": "tar", "kind": "captions", "path": root, "files": "*.tar"}
        one = {"name": "one", "kind": "captions", "path": f"{root.rstrip('/')}/00000.tar"}
        page = {"name": "page", "kind": "html", "path": root}
        recipe = BuildRecipe.model_validate({"name": "t", "heldout": 0, "sources": [tar, one, page]})
        out = tmp_path / "out" / str(len(found))
        build(recipe, out)
        found.append(sorted((s.source, s.text, s.image_bytes) for s in samples(out)))
    assert found[0] == found[1]
    assert [len([s for s in found[0] if s[0] == name]) for name in ("tar", "one", "page")] == [3, 3, 1]
    assert found[0][3][2] == (pictures[4][1],)


@here
def test_a_server_without_ranges_is_a_fault_of_the_files_that_need_them(pictures, tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    noise = random.Random(0).randbytes(12_000_000)  # more than is fetched of a file at once
    write_tar(folder, [(name, data + noise, text) for name, data, text in pictures[:1]])
    (folder / "captions.jsonl").write_text('{"image": "0.jpg", "caption": "a small one"}\n')
    (folder / "0.jpg").write_bytes(pictures[4][1])
    handler = functools.partial(Silent, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        sources = [
            {"name": name, "kind": "captions", "path": url, "files": f"*.{name}"} for name in ("tar", "jsonl")
        ]
        recipe = BuildRecipe.model_validate({"name": "t", "bad_inputs": "drop", "sources": sources})
        manifest = build(recipe, tmp_path / "out")
        server.shutdown()
    assert manifest.funnel["tar"].dropped == {"broken tar": 1}
    assert manifest.funnel["jsonl"].written == 1
    (fault,) = [b for t in manifest.tasks for b in t.bad_inputs]
    assert "answers no request for a part of a file" in str(fault)


def test_nothing_above_the_root_of_a_web_server_is_asked_for(served):
    folder, url = served
    (folder / "in").mkdir()
    (folder / "in" / "a.html").write_text("x")
    (folder / "b.html").write_text("x")
    tree = Tree.at(f"{url}/in/")
    assert tree.files((".html",)) == ["a.html"]
    assert [
        tree.exists(name) for name in ("a.html", "./a.html", "../b.html", "x/../../b.html", "/b.html")
    ] == [*(True, True, False, False, False)]


def test_a_build_into_the_folder_that_a_source_reads_is_refused_before_it_starts(tmp_path):
    (tmp_path / "page.html").write_text("<p>Some words of a page that are enough.</p>")
    (tmp_path / "captions.jsonl").write_text("{}")
    for kind in ("html", "captions"):
        source = {"name": "all", "kind": kind, "path": "."}
        recipe = BuildRecipe.model_validate({"name": "t", "sources": [source]})
        with pytest.raises(ConfigError, match="it would read what it writes"):
            build(recipe, tmp_path / "data" / "out", root=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["captions.jsonl", "page.html"]
