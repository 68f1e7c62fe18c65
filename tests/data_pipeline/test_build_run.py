"""A build as a whole: the same bytes every time, whatever kills it, and never over another dataset."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
import yaml

from data_pipeline.build.recipe import BuildRecipe, is_folder, load_build
from data_pipeline.build.run import build
from data_pipeline.build.verify import verify
from data_pipeline.cli import main
from data_pipeline.errors import ConfigError, DataError
from data_pipeline.manifest import read_manifest
from waiting import wait_for


def recipe(**changes):
    sources = [
        {"name": "dense", "kind": "scenes", "style": "dense", "count": 60},
        {"name": "qa", "kind": "scenes", "style": "questions", "count": 30, "per_scene": 3},
        {"name": "talk", "kind": "scenes", "style": "dialogue", "count": 20},
        {"name": "text", "kind": "scenes", "style": "text", "count": 20},
    ]
    return BuildRecipe(
        **{"name": "t", "tasks": 3, "heldout": 0.2, "shard_samples": 16, "sources": sources, **changes}
    )


def contents(directory):
    return {p.name: p.read_bytes() for p in sorted((directory / "shards").iterdir())}


def test_bytes_depend_neither_on_the_run_nor_on_the_workers_nor_on_the_place(tmp_path):
    one = build(recipe(), tmp_path / "a")
    two = build(recipe(), tmp_path / "b/elsewhere", workers=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b/elsewhere")
    assert one.digest == two.digest
    assert one == two
    verify(tmp_path / "a")


def test_a_repeat_of_a_finished_build_does_nothing(tmp_path):
    first = build(recipe(), tmp_path)
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "shards").iterdir()}
    assert build(recipe(), tmp_path) == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "shards").iterdir()} == times


def test_a_lost_or_truncated_shard_is_made_again_and_only_its_task(tmp_path):
    first = build(recipe(), tmp_path)
    victim = next(p for p in (tmp_path / "shards").glob("*-00001-000.arrow"))
    other = next(p for p in (tmp_path / "shards").glob("*-00002-000.arrow"))
    before = other.stat().st_mtime_ns
    victim.write_bytes(victim.read_bytes()[:100])
    assert build(recipe(), tmp_path).digest == first.digest
    assert other.stat().st_mtime_ns == before
    verify(tmp_path)


def test_every_picture_is_in_one_split_only_though_sources_share_scenes(tmp_path):
    build(recipe(), tmp_path)
    verify(tmp_path)  # fails where an image is in both
    manifest = read_manifest(tmp_path)
    assert {s.split for s in manifest.shards(source="dense")} == {"train", "heldout"}


def test_another_recipe_is_refused_and_says_what_to_do(tmp_path):
    build(recipe(), tmp_path)
    with pytest.raises(DataError, match=r"made of another recipe[\s\S]*Choose another --out"):
        build(recipe(heldout=0.3), tmp_path)
    with pytest.raises(DataError, match="another recipe"):
        build(recipe(tasks=4), tmp_path)


def test_a_directory_with_shards_of_unknown_origin_is_refused(tmp_path):
    (tmp_path / "shards").mkdir()
    with pytest.raises(DataError, match="not a build"):
        build(recipe(), tmp_path)


CHILD = """
import sys, time
from data_pipeline.build import run
from data_pipeline.build.images.check import CheckImages
from data_pipeline.build.recipe import load_build

def waiting(self, data, rank=0, world_size=1, whole=CheckImages.run):
    for n, doc in enumerate(whole(self, data, rank, world_size)):
        if rank >= int(sys.argv[4]) and n == 50:
            time.sleep(3600)  # to be killed here
        yield doc

CheckImages.run = waiting
recipe, root = load_build(sys.argv[1])
if __name__ == "__main__":
    run.build(recipe, sys.argv[2], root=root, workers=int(sys.argv[3]))
"""
PAGE = """
name: killed
tasks: 4
shard_samples: 100
sources:
  - {name: dense, kind: scenes, style: dense, count: 1200}
"""


DEADLY = """
import os, signal, sys
from data_pipeline.build import run
from data_pipeline.build.images.check import CheckImages
from data_pipeline.build.recipe import load_build
from data_pipeline.errors import TransientError

def deadly(self, data, rank=0, world_size=1, whole=CheckImages.run):
    for n, doc in enumerate(whole(self, data, rank, world_size)):
        if rank == 1 and n == 50:
            os.kill(os.getpid(), signal.SIGKILL)
        yield doc

CheckImages.run = deadly
if __name__ == "__main__":
    recipe, root = load_build(sys.argv[1])
    try:
        run.build(recipe, sys.argv[2], root=root, workers=2)
    except TransientError as e:
        print(e)
        sys.exit(e.exit_code)
"""


def test_a_worker_that_is_killed_ends_the_build_with_75_and_a_repeat_completes_it(tmp_path):
    (tmp_path / "child.py").write_text(DEADLY)
    page, out = tmp_path / "r.yaml", tmp_path / "out"
    page.write_text(PAGE)
    child = subprocess.run(
        [sys.executable, str(tmp_path / "child.py"), str(page), str(out)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert child.returncode == 75, child.stderr
    assert "repeat the same command" in child.stdout
    whole = build(load_build(page)[0], tmp_path / "whole")
    assert build(load_build(page)[0], out).digest == whole.digest


def test_no_worker_outlives_a_build_that_was_killed(tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    page, out = tmp_path / "r.yaml", tmp_path / "out"
    page.write_text(PAGE)
    child = subprocess.Popen([sys.executable, str(tmp_path / "child.py"), str(page), str(out), "2", "0"])
    wait_for(lambda: list(out.glob("shards/*.tmp-*")))
    workers = psutil.Process(child.pid).children(recursive=True)
    child.kill()
    child.wait()
    assert workers
    assert psutil.wait_procs(workers, timeout=300)[1] == []


@pytest.mark.parametrize(
    ("pattern", "task", "workers"),
    [("shards/*.tmp-*", 0, 1), ("manifest/00001.json", 2, 1), ("manifest/*.json", 2, 2)],
)
def test_a_build_killed_in_the_middle_ends_in_the_same_dataset(tmp_path, pattern, task, workers):
    (tmp_path / "child.py").write_text(CHILD)
    page, out = tmp_path / "r.yaml", tmp_path / "out"
    page.write_text(PAGE)
    child = subprocess.Popen(
        [sys.executable, str(tmp_path / "child.py"), str(page), str(out), str(workers), str(task)],
        start_new_session=True,
    )
    wait_for(lambda: list(out.glob(pattern)))
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert not (out / "manifest.json").exists(), "killed too late to prove anything"
    whole = build(load_build(page)[0], tmp_path / "whole")
    assert build(load_build(page)[0], out).digest == whole.digest
    assert not list(out.rglob("*.tmp-*"))
    assert contents(out) == contents(tmp_path / "whole")
    verify(out)


def test_a_recipe_with_faults_names_line_key_and_the_nearest_valid_one(tmp_path):
    page = tmp_path / "r.yaml"
    page.write_text("name: x\nhaldout: 0.1\nsources:\n  - {name: a, kind: scenes, style: dense, cuont: 3}\n")
    with pytest.raises(ConfigError) as e:
        load_build(page)
    text = str(e.value)
    assert "r.yaml:2: haldout: unknown key 'haldout'; did you mean 'heldout'?" in text
    assert "r.yaml:4: sources.a.cuont: unknown key 'cuont'; did you mean 'count'?" in text
    assert "'count' is missing" in text


def test_overrides_reach_a_source_by_its_name():
    changed, _ = load_build("demo", ["sources.scenes_qa.count=7", "tasks=1"])
    assert next(s.count for s in changed.sources if s.name == "scenes_qa") == 7
    assert changed.tasks == 1
    with pytest.raises(ConfigError, match="no source 'scenes_aq'; did you mean 'scenes_qa'"):
        load_build("demo", ["sources.scenes_aq.count=7"])


def test_building_data_loads_no_torch_and_the_command_line_loads_nothing_heavy():
    check = """
import sys, data_pipeline.cli
heavy = {"torch", "pyarrow", "datatrove", "PIL"} & set(sys.modules)
import data_pipeline.build.run
heavy |= {"torch", "transformers", "deepspeed", "data_pipeline.stream"} & set(sys.modules)
sys.exit(str(heavy) if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_a_shipped_recipe_is_found_beside_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert not is_folder("demo")
    assert is_folder("./demo")
    assert is_folder(tmp_path / "demo")


def test_an_out_inside_the_folder_that_is_built_is_refused(tmp_path):
    (tmp_path / "page.html").write_text("<p>some words that make a page</p>")
    with pytest.raises(ConfigError, match="lies inside"):
        build(tmp_path, tmp_path / "data" / "mine")
    assert not (tmp_path / "data").exists()


def test_a_repeat_of_a_finished_build_looks_for_copies_no_more(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "page.html").write_text("<p>some words that make a page</p>")
    source = {"name": "pages", "kind": "html", "path": "."}
    recipe = BuildRecipe.model_validate({"name": "n", "dedup": {}, "sources": [source]})
    first = build(recipe, tmp_path / "out", root=tmp_path / "in")
    monkeypatch.setattr("data_pipeline.build.run.exclusions", lambda *a, **k: pytest.fail("looked again"))
    assert build(recipe, tmp_path / "out", root=tmp_path / "in") == first


def test_a_dataset_without_a_sample_ends_with_4_and_says_why(tmp_path, capsys):
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "a.html").write_text("<p>too short</p>")
    assert main(["data", "build", str(tmp_path / "pages"), "--out", str(tmp_path / "out")]) == 4
    said = capsys.readouterr()
    assert "1 dropped: too little text" in said.out
    assert "holds no sample" in said.err
    assert (tmp_path / "out" / "report.html").is_file()


def test_an_error_of_a_task_is_said_once_and_its_traceback_stands_in_the_log(tmp_path, make, capfd):
    make.dataset(tmp_path / "photos", [make.caption(n) for n in range(2)])
    page = {"name": "syn", "tasks": 1, "sources": [
        {"name": "s", "kind": "synthetic", "path": str(tmp_path / "photos"), "task": "caption", "model": "m",
         "endpoint": "http://127.0.0.1:9/v1", "retries": 0}]}  # fmt: skip
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(page))
    assert main(["data", "build", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "out")]) == 75
    said = capfd.readouterr()
    assert said.err.startswith("fovea: source 's', http://127.0.0.1:9/v1: no connection")
    assert said.err.count("no connection") == 1
    (log,) = (tmp_path / "out" / "logs").glob("*/logs/task_00000.log")
    assert "Traceback" in log.read_text()
