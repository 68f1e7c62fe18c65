"""Verify finds what is wrong; stats and preview show what is there, and a preview runs nothing."""

import argparse
import dataclasses
import json
import random
import shutil

import pyarrow as pa
import pytest
from PIL import Image

from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.build.run import build
from data_pipeline.build.verify import verify
from data_pipeline.cli import add_parser, main
from data_pipeline.cli_parser import IntermixedParser
from data_pipeline.errors import DataError
from data_pipeline.manifest import (
    Manifest,
    read_manifest,
    seal,
    sha256_file,
    write_json,
    write_manifest,
    write_task_record,
)
from data_pipeline.view import Exclusion, exclude, samples


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
    size = (dataset / shard.path).stat().st_size
    text = text.replace(shard.sha256, sha256_file(dataset / shard.path)).replace(str(shard.nbytes), str(size))
    (dataset / "manifest.json").write_text(text)
    with pytest.raises(DataError, match="schema"):
        verify(dataset)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A dataset with one of everything: three formats, both splits, drops, exclusions, a sidecar column."""
    root = tmp_path_factory.mktemp("whole")
    (root / "in").mkdir()
    for n in range(8):
        side = 40 if n % 4 else 8
        Image.new("RGB", (side, side), (n * 30, 9, 9)).save(root / f"in/{n}.png")
    records = [{"file": f"{n}.png", "caption": f"number {n} " * (60 * n + 1)} for n in range(8)]
    (root / "in/captions.json").write_text(json.dumps(records))
    source = {"name": "caps", "kind": "captions", "path": str(root / "in")}
    recipe = BuildRecipe(name="t", tasks=2, heldout=0.5, sources=[source])
    recipe = recipe.model_copy(update={"formats": ("arrow", "webdataset", "parquet")})
    out = root / "data"
    build(recipe, out)
    first = next(samples(out))
    exclude(out, "dedup", [Exclusion(first.id, None, "copy")], {"threshold": 3})
    column = out / "columns/sharpness"
    column.mkdir(parents=True)
    (column / "caps.arrow").write_bytes(b"0123456789")
    files = [{"path": "caps.arrow", "sha256": sha256_file(column / "caps.arrow")}]
    write_json(column / "COLUMN.json", seal({"column": "sharpness", "files": files}))
    return out


def files_of(directory):
    """All files of the dataset; not its report, which `fovea data report` makes of them at any time."""
    apart = ("build.json", ".lock", "report.html", "funnel.json", "card.md")
    names = (p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    return sorted(n for n in names if not n.startswith("logs/") and n not in apart)


def test_a_dataset_with_everything_is_sound(whole):
    found = verify(whole)
    kinds = {n.rpartition(".")[2] for n in files_of(whole)}
    assert kinds == {"json", "jsonl", "arrow", "tar", "idx", "parquet"}
    assert found.excluded == 1
    assert found.megabytes_per_second > 0


def damage(kind: str, data: bytes, draw: random.Random) -> bytes | None:
    match kind:
        case "flip":
            changed = bytearray(data)
            changed[draw.choice((0, len(data) - 1, draw.randrange(len(data))))] ^= 1 << draw.randrange(8)
            return bytes(changed)
        case "truncate":
            return data[: draw.choice((0, len(data) - 1, draw.randrange(len(data))))]
        case "extend":
            return data + b"\0"
    return None


@pytest.mark.parametrize("kind", ["flip", "truncate", "extend", "delete"])
def test_damage_to_any_file_is_found_and_the_file_is_named(whole, tmp_path, kind):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    draw = random.Random(kind)
    unnoticed = []
    for name in files_of(copy):
        path = copy / name
        data = path.read_bytes()
        for _ in range({"flip": 6, "truncate": 2}.get(kind, 1) if data else 0):
            changed = damage(kind, data, draw)
            path.unlink() if changed is None else path.write_bytes(changed)
            try:
                verify(copy)
                unnoticed.append((name, "nothing was found"))
            except DataError as e:
                if name not in str(e):
                    unnoticed.append((name, str(e)))
            path.write_bytes(data)
    assert unnoticed == []
    assert verify(copy) is not None, "the copy is whole again"


def test_a_file_too_many_is_found_in_every_folder(whole, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    names = ["shards/caps-train-00009-000.tar.idx", "exclusions/old.jsonl", "manifest/00009.json",
             "dropped/00009.jsonl", "columns/sharpness/x", "columns/y/z", "shards/a/b"]  # fmt: skip
    for name in names:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes(b"")
        with pytest.raises(DataError, match=name.rpartition("/")[0] if name.endswith("z") else name):
            verify(copy)
        (copy / name).unlink()
        shutil.rmtree(copy / "columns/y", ignore_errors=True)


@pytest.mark.parametrize("suffix", ["arrow", "tar", "tar.idx", "parquet"])
def test_two_files_with_exchanged_names_are_found(whole, tmp_path, suffix):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    a, b = sorted((copy / "shards").glob(f"*.{suffix}"))[:2]
    a.rename(tmp_path / "a")
    b.rename(a)
    (tmp_path / "a").rename(b)
    with pytest.raises(DataError) as e:
        verify(copy)
    assert a.name in str(e.value)
    assert b.name in str(e.value)


def rewritten(directory, change) -> Manifest:
    """The manifest after `change`, with records and seals that fit it: only the content is at fault."""
    manifest = change(read_manifest(directory))
    for task in manifest.tasks:
        write_task_record(directory, task)
    write_manifest(directory, manifest)
    return manifest


def test_images_that_were_not_counted_are_found(whole, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)

    def one_more(manifest):
        task = manifest.tasks[0]
        funnel = dataclasses.replace(
            task.funnel["caps"],
            images_written=task.funnel["caps"].images_written + 1,
            images_read=task.funnel["caps"].images_read + 1,
        )
        changed = dataclasses.replace(task, funnel={"caps": funnel})
        return dataclasses.replace(manifest, tasks=(changed, *manifest.tasks[1:]))

    rewritten(copy, one_more)
    with pytest.raises(DataError, match="7 images written, but its shards hold 6"):
        verify(copy)


def test_drops_that_are_not_listed_are_found(whole, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)

    def other_reason(manifest):
        task = next(t for t in manifest.tasks if t.funnel["caps"].dropped)
        funnel = dataclasses.replace(task.funnel["caps"], dropped={"copy": 1 * len(task.funnel)})
        changed = dataclasses.replace(task, funnel={"caps": funnel})
        return dataclasses.replace(manifest, tasks=tuple(changed if t is task else t for t in manifest.tasks))

    rewritten(copy, other_reason)
    with pytest.raises(DataError, match=r"dropped/.*the funnel counts"):
        verify(copy)


def test_exclusions_of_what_is_not_there_and_wrong_counts_are_found(whole, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    record = read_manifest(copy).exclusions[0]
    line = {"id": "0" * 32, "media_id": None, "reason": "copy", "detail": ""}
    (copy / record.path).write_text(json.dumps(line) + "\n")

    def fitting(manifest):
        changed = dataclasses.replace(record, sha256=sha256_file(copy / record.path))
        return dataclasses.replace(manifest, exclusions=(changed,))

    rewritten(copy, fitting)
    with pytest.raises(DataError) as e:
        verify(copy)
    assert "1 sample(s) that no shard holds, for instance 000" in str(e.value)
    assert "takes away {} for {}; the manifest says {'caps'" in str(e.value)


def test_counts_of_exclusions_add_up_over_steps_that_meet(tmp_path, make):
    documents = [make.document(n, pictures=2) for n in range(6)]
    make.dataset(tmp_path, documents)
    d = [s.id for s in documents]
    exclude(tmp_path, "a", [Exclusion(d[0], "d0.0", "x"), Exclusion(d[1], None, "y")], {})
    exclude(tmp_path, "b", [Exclusion(d[0], None, "x"), Exclusion(d[2], "d2.1", "z")], {})
    exclude(tmp_path, "a", [Exclusion(d[3], "d3.0", "x"), Exclusion(d[2], "d2.0", "y")], {})
    with pytest.raises(DataError) as e:  # made by hand: its images are not described
        verify(tmp_path)
    assert "takes away" not in str(e.value)


def test_a_sample_id_that_comes_twice_is_found(tmp_path, make):
    make.dataset(tmp_path, [make.caption(n % 3) for n in range(5)])
    with pytest.raises(DataError, match=r"2 sample id\(s\) come more than once, for instance cap"):
        verify(tmp_path)


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
