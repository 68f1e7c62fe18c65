"""Two builds in one directory at the same time: one is refused, or both write the same bytes."""

import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.build.directory import locked
from data_pipeline.build.executor import Job, LocalExecutor
from data_pipeline.build.recipe import recipe_fingerprint
from data_pipeline.build.run import build
from data_pipeline.build.sources import listing, open_reader
from data_pipeline.build.steps import ReadSources
from data_pipeline.build.write.shards import WriteShards
from exactly_once import command, content, half_built, recipe


def test_the_second_of_two_builds_is_refused_with_3_and_harms_nothing(inputs, tmp_path):
    half_built(inputs, tmp_path / "out")
    before = content(tmp_path / "out")
    with locked(tmp_path / "out"):
        ran = subprocess.run(command(inputs, tmp_path / "out"), capture_output=True, text=True, check=False)
    assert ran.returncode == 3
    assert "another build is at work" in ran.stderr
    assert content(tmp_path / "out") == before


@pytest.mark.slow
def test_of_three_builds_started_at_once_those_that_run_make_one_dataset(inputs, whole, tmp_path):
    words = command(inputs, tmp_path / "out")
    racing = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [p.communicate(timeout=600)[1] for p in racing]
    codes = [p.returncode for p in racing]
    assert 0 in codes
    assert all(c == 0 or (c == 3 and "another build" in s) for c, s in zip(codes, said, strict=True)), said
    assert content(tmp_path / "out") == content(whole)


LOCK_AND_DIE = """
import os, signal, sys
from pathlib import Path
from data_pipeline.build.directory import locked
with locked(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_lock_of_a_build_that_was_killed_stops_nobody(inputs, whole, tmp_path):
    died = subprocess.run([sys.executable, "-c", LOCK_AND_DIE, tmp_path / "out"], check=False)
    assert died.returncode == -signal.SIGKILL
    assert (tmp_path / "out/.lock").exists()
    build(recipe(), tmp_path / "out", root=inputs)
    assert content(tmp_path / "out") == content(whole)


def job_of(inputs: Path, out: Path) -> Job:
    """All tasks of a build as an executor gets them, done or not: what a requeued array does."""
    asked = recipe()
    readers = {s.name: open_reader(s, asked, root=inputs, directory=out, endpoints={}) for s in asked.sources}
    fingerprint = recipe_fingerprint(asked) + listing(readers, versions=False)
    steps = [ReadSources(readers), WriteShards(out, asked, fingerprint, ("read",))]
    return Job(name="twice", pipeline=steps, tasks=asked.tasks, logs=out / "logs", is_done=never)


def never(rank: int) -> bool:
    return False


def run_at(moment: float, inputs: Path, out: Path) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
    LocalExecutor().run(job_of(inputs, out))


def test_the_same_task_run_twice_at_once_leaves_one_record_and_the_same_bytes(inputs, tmp_path):
    run_at(0, inputs, tmp_path / "one")
    context = multiprocessing.get_context("fork")
    moment = time.monotonic() + 0.3
    both = [context.Process(target=run_at, args=(moment, inputs, tmp_path / "two")) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(600)
    assert [p.exitcode for p in both] == [0, 0]
    assert content(tmp_path / "two") == content(tmp_path / "one")
