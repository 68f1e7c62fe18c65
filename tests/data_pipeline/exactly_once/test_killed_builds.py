"""Killed at any time and repeated, a build ends in the dataset of an unbroken one."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest
import yaml

from data_pipeline.build.recipe import load_build
from data_pipeline.build.run import build
from data_pipeline.errors import DataError
from data_pipeline.manifest import read_manifest
from exactly_once import PHOTOS, SCENES, command, content, page, recipe, sound


def workers_of(child: subprocess.Popen) -> list[psutil.Process]:
    """Its grandchildren: its own children are the servers of multiprocessing."""
    if child.poll() is not None:
        return []
    try:
        below = psutil.Process(child.pid).children(recursive=True)
        return [p for p in below if p.ppid() != child.pid]
    except psutil.NoSuchProcess:
        return []


def wait_for(child: subprocess.Popen, happened: Callable[[], object]) -> None:
    until = time.monotonic() + 300
    while not happened() and child.poll() is None and time.monotonic() < until:
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["a worker", "the whole group"])
def test_kills_at_random_times_end_in_the_same_dataset(victim, inputs, tmp_path):
    rng = random.Random(victim)
    out = tmp_path / "out"
    longer = {"tasks": 6, "shard_samples": 30, "sources": [SCENES, PHOTOS]}
    words = command(inputs, out, "--workers", "2", **longer)
    killed = 0
    for _ in range(12):
        child = subprocess.Popen(
            words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        moment = rng.choice((".lock", "build.json", "shards", "manifest", "dropped"))
        wait_for(child, lambda moment=moment: (out / moment).exists())
        if victim == "a worker":
            wait_for(child, lambda child=child: workers_of(child))
        time.sleep(rng.uniform(0, 0.2))
        if victim == "a worker":
            workers = workers_of(child)
            for worker in rng.sample(workers, min(1, len(workers))):
                worker.kill()
            killed += bool(workers)
            assert child.wait(300) in (0, 75), "the build says that it is to be repeated"
        else:
            killed += child.poll() is None
            os.killpg(child.pid, signal.SIGKILL)
            child.wait(300)
        finished = (out / "manifest.json").exists()
        if killed == 4 or (finished and killed > 1):
            break
        if finished:
            shutil.rmtree(out)  # killed too late to prove anything
            killed = 0
    assert killed > 1
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0
    build(recipe(**longer), tmp_path / "whole", root=inputs)
    assert content(out) == content(tmp_path / "whole")
    sound(out)


DIE_IN_THE_MIDDLE = """
import os, signal, sys
from pathlib import Path
from data_pipeline.build.images.check import CheckImages
from data_pipeline.build.run import build

def deadly(self, data, rank=0, world_size=1, whole=CheckImages.run):
    for n, doc in enumerate(whole(self, data, rank, world_size)):
        if rank == 1 and n == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        yield doc

CheckImages.run = deadly
build(sys.argv[1], sys.argv[2])
"""


def test_a_task_that_died_half_way_leaves_no_half_file_and_goes_on_where_it_stood(inputs, whole, tmp_path):
    out = tmp_path / "out"
    (inputs / "recipe.yaml").write_text(yaml.safe_dump(page()))
    died = subprocess.run([sys.executable, "-c", DIE_IN_THE_MIDDLE, inputs / "recipe.yaml", out], check=False)
    assert died.returncode == -signal.SIGKILL
    assert sorted(p.name for p in (out / "manifest").glob("*.json")) == ["00000.json"]
    finals = [p for p in (out / "shards").iterdir() if ".tmp-" not in p.name]
    assert any("-00001-" in p.name for p in finals), "the task had finished shards"
    before = content(whole)
    assert all(p.read_bytes() == before[f"shards/{p.name}"] for p in finals)
    with pytest.raises(DataError, match="no manifest"):
        read_manifest(out)
    done = (out / "manifest/00000.json").stat().st_mtime_ns
    build(load_build(inputs / "recipe.yaml")[0], out, root=inputs)
    assert (out / "manifest/00000.json").stat().st_mtime_ns == done
    assert content(out) == content(whole)
