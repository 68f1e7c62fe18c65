"""A folder as it lies: every file with its kind, by name or by its first row, each of them read once."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from data_pipeline.build.discover import discover
from data_pipeline.build.run import build
from data_pipeline.view import samples


def png(n: int) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((40 + n, 32), 60).save(out, "PNG")
    return out.getvalue()


def found(folder: Path) -> tuple[set[tuple[str, str, str | None]], tuple[str, ...]]:
    recipe, unread = discover(folder)
    return {(s.kind, s.path, getattr(s, "files", None)) for s in recipe.sources}, unread


def outside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-built")


def write_tar(path: Path, first: int, count: int, **members: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for n in range(first, first + count):
            writer.write({"__key__": f"{n:05d}", "png": png(n), **members})


CAULDRON = {"images": [], "texts": [{"user": "What is it?", "assistant": "A square.", "source": "x"}]}


def lines(path: Path, *rows: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"image": "a.png", "caption": "a dog"}, "captions"),
        ({"image": "a.png", "question": "what?", "answer": "a dog"}, "questions"),
        ({"image": "a.png", "conversations": [{"from": "human", "value": "<image>?"}]}, "questions"),
        ({"messages": [{"role": "user", "content": "what?"}]}, "questions"),
        (CAULDRON, "questions"),
        ({"texts": ["a", None], "images": [None, "a.png"]}, "interleaved"),
        ({"text_list": ["a"], "image_info": []}, "interleaved"),
        ({"sequence": [{"text": "a"}]}, "interleaved"),
        ({"url": "http://h.org/a.png", "caption": "a dog"}, None),  # nothing is fetched
        ({"image": "https://h.org/a.png", "caption": "a dog"}, None),
        ({"text": "a dog"}, None),
        ({"name": "fovea", "version": 2}, None),
    ],
)
@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
def test_a_file_whose_name_says_nothing_is_judged_by_the_keys_of_its_first_row(tmp_path, row, kind, name):
    (tmp_path / "page.html").write_text("<p>Something that is read in any case.</p>")
    lines(tmp_path / name, row, row)
    sources, unread = found(tmp_path)
    assert sources - {("html", ".", None)} == ({(kind, name, None)} if kind else set())
    assert unread == (() if kind else (name,))


def test_the_first_sound_row_decides_and_a_file_of_none_is_unread(tmp_path):
    (tmp_path / "a.jsonl").write_text('not JSON\n{"image": "x.png", "caption": "a dog"}\n')
    (tmp_path / "b.parquet").write_bytes(b"PAR1 but nothing else")
    (tmp_path / "c.tar").write_bytes(bytes(64))
    assert found(tmp_path) == ({("captions", "a.jsonl", None)}, ("b.parquet", "c.tar"))


def test_numbered_files_are_one_source_and_no_file_is_read_twice(tmp_path):
    for n in range(3):
        write_tar(tmp_path / f"pairs/{n:05d}.tar", 2 * n, 2, txt="words about it")
        pq.write_table(pa.table({"key": ["x"], "url": ["http://h.org"]}), tmp_path / f"pairs/{n:05d}.parquet")
        (tmp_path / f"pairs/{n:05d}_stats.json").write_text('{"count": 2}')
        pq.write_table(pa.Table.from_pylist([CAULDRON]), tmp_path / f"pairs/train-{n}-of-3.parquet")
    write_tar(tmp_path / "nested/0.tar", 0, 1, txt="words")
    write_tar(tmp_path / "nested/1.tar", 1, 1, txt="words")
    write_tar(tmp_path / "nested/val/2.tar", 2, 1, txt="words")
    sources, unread = found(tmp_path)
    assert sources == {
        ("captions", "pairs", "*.tar"),
        ("questions", "pairs", "train-*-of-*.parquet"),
        ("captions", "nested/0.tar", None),  # that pattern would also find the one below
        ("captions", "nested/1.tar", None),
        ("captions", "nested/val/2.tar", None),
    }
    assert unread == ()
    manifest = build(tmp_path, outside(tmp_path))
    assert {k: f.written for k, f in manifest.funnel.items()} == {
        "pairs-captions": 6, "pairs-questions": 3,
        "nested-captions-0": 1, "nested-captions-1": 1, "nested-captions-2": 1,
    }  # fmt: skip


def test_a_dataset_that_datasets_saved_is_one_source_of_the_files_its_state_lists(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = [{"image": {"bytes": png(n), "path": None}, "caption": f"word {n}"} for n in range(6)]
    saved = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict({"train": saved, "test": saved.select(range(2)).flatten_indices()}).save_to_disk(
        tmp_path / "hub", num_shards={"train": 2, "test": 1}
    )
    (tmp_path / "hub/train/cache-0123456789abcdef.arrow").write_bytes(b"left by a map that was cut off")
    assert found(tmp_path)[0] == {("captions", "hub/train", None), ("captions", "hub/test", None)}
    manifest = build(tmp_path, outside(tmp_path))
    assert {k: f.written for k, f in manifest.funnel.items()} == {
        "hub-captions-train": 6, "hub-captions-test": 2
    }  # fmt: skip


def test_pages_beside_folders_of_pages_are_read_once(tmp_path):
    for name in ("a.html", "sub/b.html", "other/c.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"<p>The words of page {name}, enough of them.</p>")
    assert found(tmp_path)[0] == {("html", ".", None)}
    build(tmp_path, out := outside(tmp_path))
    assert sorted(s.url for s in samples(out)) == ["a.html", "other/c.html", "sub/b.html"]


def test_a_built_dataset_below_the_folder_is_not_read(tmp_path):
    lines(tmp_path / "raw/qa.jsonl", {"question": "How many?", "answer": "four"})
    build(tmp_path / "raw", tmp_path / "built")
    sources, unread = found(tmp_path)
    assert sources == {("questions", "raw/qa.jsonl", None)}
    assert unread
    assert all(name.startswith("built/") for name in unread)


def test_pictures_that_records_name_count_as_read_and_loose_ones_do_not(tmp_path):
    for name in ("a/x.png", "a/images/y.png", "a/loose.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    table = pa.table({"image": ["x.png", "y.png"], "caption": ["a dog", "a cat"]})
    pq.write_table(table, tmp_path / "a/table.parquet")
    assert found(tmp_path) == ({("captions", "a/table.parquet", None)}, ("a/loose.png",))


def test_of_many_records_the_first_tell_where_pictures_lie(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.build.discover._NAMING", 10)
    for n in range(12):
        (tmp_path / f"{n}.png").write_bytes(png(n))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/z.png").write_bytes(png(1))
    lines(tmp_path / "captions.jsonl", *({"image": f"{n}.png", "caption": "a dog"} for n in range(12)))
    assert found(tmp_path)[1] == ("other/z.png",)


def test_crawls_are_one_source_per_folder(tmp_path):
    for name in ("c/a.warc", "c/b.warc.gz", "c/deep/d.arc.gz", "e/f.arc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert found(tmp_path) == ({("warc", "c", None), ("warc", "e", None)}, ())


def test_a_tar_of_classes_without_words_is_unread(tmp_path):
    write_tar(tmp_path / "00000.tar", 0, 2, cls="3")
    with tarfile.open(tmp_path / "code.tar.gz", "w:gz") as tar:
        tar.add(__file__, "src/main.py")
    (tmp_path / "qa.json").write_text('[{"question": "a?", "answer": "b"}]')
    assert found(tmp_path) == ({("questions", "qa.json", None)}, ("00000.tar", "code.tar.gz"))
