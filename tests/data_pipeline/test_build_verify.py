"""Verify finds what is wrong; stats and preview show what is there, and a preview runs nothing."""

import argparse
import json

import pyarrow as pa
import pytest
from PIL import Image

from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.build.run import build
from data_pipeline.build.verify import verify
from data_pipeline.cli import IntermixedParser, add_parser, main
from data_pipeline.errors import DataError
from data_pipeline.manifest import read_manifest


@pytest.fixture
def dataset(tmp_path):
    sources = [{"name": "qa", "kind": "scenes", "style": "questions", "count": 30}]
    build(BuildRecipe(name="t", tasks=1, sources=sources), tmp_path / "data")
    return tmp_path / "data"


def test_a_sound_dataset_is_counted(dataset):
    found = verify(dataset)
    assert (found.samples, found.images, found.shards) == (60, 60, 4)


@pytest.mark.parametrize("suffix", ["arrow", "tar"])
def test_one_flipped_byte_is_found_in_either_format(dataset, suffix):
    path = next((dataset / "shards").glob(f"qa-train-*.{suffix}"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{path.name} was altered"):
        verify(dataset)


def test_all_faults_are_listed_at_once(dataset):
    arrow = next((dataset / "shards").glob("qa-train-*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:500])
    next((dataset / "shards").glob("qa-heldout-*.tar")).unlink()
    (dataset / "shards/stranger.arrow").write_bytes(b"")
    with pytest.raises(DataError) as e:
        verify(dataset)
    for fault in ("truncated", "is missing", "stranger.arrow: in the directory, but not in the manifest"):
        assert fault in str(e.value)


def test_a_wrong_index_is_found(dataset):
    index = next((dataset / "shards").glob("*.idx"))
    index.write_bytes(index.read_bytes()[:-8])
    with pytest.raises(DataError, match="not the offsets"):
        verify(dataset)


def test_a_manifest_that_does_not_add_up_is_found(dataset):
    path = dataset / "manifest.json"
    raw = json.loads(path.read_text())
    raw["tasks"][0]["funnel"]["qa"]["read"] += 1
    raw["tasks"][0]["shards"][0]["samples"] += 1
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError) as e:
        verify(dataset)
    assert "61 read, 60 written" in str(e.value)
    assert "60 written, but its shards hold 61" in str(e.value)


def test_a_shard_of_other_columns_is_found_even_with_a_fitting_sha(dataset):
    manifest = read_manifest(dataset)
    shard = manifest.shards(format="arrow")[0]
    table = pa.table({"id": ["a"]})
    with pa.OSFile(str(dataset / shard.path), "wb") as f, pa.ipc.new_file(f, table.schema) as writer:
        writer.write_table(table)
    text = (dataset / "manifest.json").read_text()
    from data_pipeline.manifest import sha256_file  # noqa: PLC0415

    size = (dataset / shard.path).stat().st_size
    text = text.replace(shard.sha256, sha256_file(dataset / shard.path)).replace(str(shard.nbytes), str(size))
    (dataset / "manifest.json").write_text(text)
    with pytest.raises(DataError, match="schema"):
        verify(dataset)


def test_a_preview_escapes_what_others_wrote_and_forbids_scripts(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "in/a.png")
    evil = "</p><script>alert(1)</script>\x1b]0;x"
    record = {"file": "a.png", "caption": evil, "alt": '"><script>alert(2)</script>'}
    (tmp_path / "in/captions.json").write_text(json.dumps([record]))
    out, page = str(tmp_path / "data"), tmp_path / "p.html"
    assert main(["data", "build", str(tmp_path / "in"), "--out", out]) == 0
    assert main(["data", "preview", out, "--out", str(page)]) == 0
    text = page.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert "data:image/png;base64," in text


def test_the_verbs_go_from_raw_documents_to_a_proved_dataset(tmp_path, capsys):
    raw, out = str(tmp_path / "raw"), str(tmp_path / "data")
    assert main(["data", "scenes", "--out", raw, "--pages", "3", "--pdfs", "2"]) == 0
    counts = [f"sources.scenes_{s}.count=10" for s in ("alt", "dense", "qa", "dialogue", "text")]
    assert main(["data", "build", "demo", "--inputs", raw, "--out", out, *counts]) == 0
    assert main(["data", "verify", out]) == 0
    capsys.readouterr()
    assert main(["data", "stats", out, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sources"]["scenes_qa"]["funnel"] == {"read": 20, "written": 20, "dropped": {}}
    assert found["sources"]["scenes_pages"]["images_per_sample"] >= 1
    assert main(["data", "stats", out]) == 0
    assert "scenes_pdf" in capsys.readouterr().out


def test_errors_become_text_and_an_exit_code(tmp_path, capsys):
    assert main(["data", "verify", str(tmp_path)]) == 4
    assert main(["data", "build", "scnes", "--out", str(tmp_path / "x")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_verbs_mount_under_any_command_and_say_what_to_run():
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(parser_class=IntermixedParser))
    args = parser.parse_args(["data", "build", "r.yaml", "--workers", "2", "tasks=3"])
    assert callable(args.run_verb)
    assert args.overrides == ["tasks=3"]
