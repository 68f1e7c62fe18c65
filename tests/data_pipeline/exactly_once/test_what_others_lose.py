"""What datatrove by itself loses, doubles or fetches is neither lost, doubled nor fetched here."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import yaml

from data_pipeline.build.run import build
from data_pipeline.manifest import read_manifest
from data_pipeline.view import samples
from exactly_once import PHOTOS, page, recipe, sound
from prose import PROSE


def test_one_large_file_is_divided_among_all_tasks_and_no_line_is_read_twice(inputs, whole):
    manifest = read_manifest(whole)
    written = [sum(s.samples for s in t.shards if s.format == "arrow") for t in manifest.tasks]
    assert len(written) == 4
    assert all(written)
    assert sum(written) == 60
    assert len({s.id for s in samples(whole)}) == 60


def document(folder: Path, rows: list[dict], **changes) -> list:
    (folder / "interleaved.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    source = {"name": "docs", "kind": "interleaved", "path": "interleaved.jsonl"}
    formats = ["arrow", "webdataset", "parquet"]
    asked = recipe(sources=[source], formats=formats, tasks=1, heldout=0, **changes)
    build(asked, folder / "built", root=folder)
    sound(folder / "built")
    return list(samples(folder / "built"))


def test_a_document_of_images_alone_is_kept(tmp_path, make):
    (tmp_path / "a.png").write_bytes(make.png(40, 40))
    found = document(tmp_path, [{"sequence": [{"image": "a.png"}]}])
    assert [[s.type for s in f.segments] for f in found] == [["image"]]


def test_a_first_document_without_images_takes_none_from_the_others(tmp_path, make):
    data = make.png(40, 40)
    (tmp_path / "a.png").write_bytes(data)
    words = {"text": "words that are long enough to be kept"}
    found = document(tmp_path, [{"sequence": [words]}, {"sequence": [words, {"image": "a.png"}]}])
    assert [f.image_bytes for f in found] == [(), (data,)]
    for shard in (tmp_path / "built/shards").glob("*.arrow"):
        with pa.memory_map(str(shard)) as f:
            stored = pa.ipc.open_file(f).read_all().column("images").to_pylist()
        assert [[i["bytes"] for i in row] for row in stored] == [[], [data]]


def test_new_keys_nulls_and_other_types_in_late_rows_are_no_failure(tmp_path):
    def row(n, **more):
        return {"sequence": [{"text": f"words of document {n} that are long enough"}], **more}

    rows = [row(n, score=1, tag="x") for n in range(70)]
    rows += [row(70, score=None, tag=["x"]), row(71, new={"deep": 1}), row(72, score="high")]
    found = document(tmp_path, rows)
    assert len(found) == 73
    assert {k for f in found[70:] for k in json.loads(f.general_metadata)} == {"score", "tag", "new"}


OFFLINE = """
import sys

def forbid(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        raise RuntimeError(f"the network: {event} {args}")

sys.addaudithook(forbid)
if sys.argv[1] == "control":
    import urllib.request
    urllib.request.urlopen("http://127.0.0.1:9/")
from data_pipeline.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_build_with_languages_repetition_and_minhash_asks_the_network_for_nothing(inputs, tmp_path):
    sources = [PHOTOS, {"name": "pages", "kind": "html", "path": "web"}]
    (inputs / "web").mkdir()
    for n in range(3):
        (inputs / f"web/{n}.png").write_bytes((inputs / f"{n}.png").read_bytes())
        (inputs / f"web/{n}.html").write_text(
            f"<html><body><p>{PROSE} Page {n}.</p><img src='{n}.png'></body></html>"
        )
    (inputs / "recipe.yaml").write_text(
        yaml.safe_dump(
            page(
                tasks=1,
                sources=sources,
                filters={"languages": ["en"], "repetition": {}, "personal_data": ["email", "ip", "phone"]},
                dedup={"documents": {"minhash": {}}, "images": {"near": {}}},
                bad_inputs="drop",
            )
        )
    )
    words = ["data", "build", inputs / "recipe.yaml", "--out", tmp_path / "out"]
    ran = subprocess.run([sys.executable, "-c", OFFLINE, *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    control = subprocess.run([sys.executable, "-c", OFFLINE, "control"], capture_output=True, check=False)
    assert b"the network: socket." in control.stderr, "the guard does not see the network"
    sound(tmp_path / "out")
