"""`fovea watch --submit` on a real Slurm: each checkpoint that waits is evaluated once, by a job array."""

import json
import re
import shutil

import psutil
import pytest

from data_pipeline.errors import ConfigError
from data_pipeline.manifest import sha256_file, write_json
from trainer.engine.pins import pinned
from trainer.watch import Watch
from trainer.watch_jobs import run_task
from waiting import wait_for


@pytest.fixture
def run(unbroken, tmp_path):
    """A trained stage with two checkpoints, nothing evaluated."""
    return shutil.copytree(unbroken, tmp_path / "run")


@pytest.fixture
def watch(cluster, run):
    def submit(code=0):
        """Checkpoint -> task, and whether it was submitted or is there; what was said beside."""
        words = ("fovea", "watch", run, "--suite", "quick", "--submit", "--once")
        done = cluster.command(*words, check=False, OMP_NUM_THREADS=1)
        assert done.returncode == code, done.stdout + done.stderr
        found = re.findall(r"^(\S+) +job (\d+_\d+) (submitted|is there)$", done.stdout, re.MULTILINE)
        assert len(found) == len(done.stdout.splitlines())
        return {checkpoint: (task, what) for checkpoint, task, what in found}, done.stderr

    return submit


def evaluating(checkpoint):
    """Processes that evaluate it."""
    return [
        p
        for p in psutil.process_iter(["cmdline"])
        if {"eval", str(checkpoint)} <= set(p.info["cmdline"] or ())
    ]


def test_checkpoints_that_wait_are_evaluated_once_by_an_array_and_one_whose_task_was_killed_again(
    cluster, run, watch, monkeypatch
):
    monkeypatch.setenv("SLURM_CONF", str(cluster.state / "slurm.conf"))
    align, (one, two) = run / "align", ("align/step_000004", "align/step_000008")
    results = {name: align / "eval" / name.removeprefix("align/") / "scenes.json" for name in (one, two)}
    sleeps = ("--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 3600")
    busy = cluster.command("sbatch", "--parsable", *sleeps).stdout.strip()
    cluster.wait(busy, "RUNNING")
    first, _ = watch()
    assert list(first) == [one, two]
    assert {what for _, what in first.values()} == {"submitted"}
    assert watch()[0] == {name: (task, "is there") for name, (task, _) in first.items()}
    assert pinned(align) == {"step_000004", "step_000008"}  # while they wait

    cluster.command("scancel", busy)
    killed, well = first[one][0], first[two][0]
    wait_for(lambda: evaluating(align / "checkpoints" / "step_000004"), 240)
    cluster.command("scancel", "--signal=KILL", killed)
    assert cluster.wait(killed)["JobState"] != "COMPLETED"
    assert cluster.wait(well)["JobState"] == "COMPLETED"
    assert [file.is_file() for file in results.values()] == [False, True]
    assert pinned(align) == set()  # the dead hold nothing
    of_the_first = results[two].stat().st_mtime_ns

    second, _ = watch()
    ((name, (task, what)),) = second.items()
    assert (name, what) == (one, "submitted")
    assert cluster.wait(task)["JobState"] == "COMPLETED"
    assert watch()[0] == {}
    assert results[two].stat().st_mtime_ns == of_the_first
    for name, file in results.items():
        marker = align / "checkpoints" / name.removeprefix("align/") / "COMPLETE.json"
        assert json.loads(file.read_text())["checkpoint"]["digest"] == sha256_file(marker)

    # Two tasks were for it, none has left results, and a third one now: there is no fourth.
    results[one].unlink()
    last = run / "jobs" / "watch-quick-000002.json"
    shutil.copy(last, last.with_name("watch-quick-000003.json"))
    submitted, said = watch(code=4)
    assert submitted == {}
    assert str(results[one].with_name("quick.log")) in said
    assert "watch-quick-*.json" in said


def test_a_task_that_its_list_does_not_have_is_refused_and_a_checkpoint_that_is_gone_is_said(tmp_path):
    listed = tmp_path / "jobs" / "watch-quick-000001.json"
    write_json(listed, [{"checkpoint": "align/checkpoints/step_000004", "digest": "d"}])
    watched, said = Watch(tmp_path, None, "heldout", None), []
    for index in (None, "1", "x"):
        with pytest.raises(ConfigError, match=r"indices from 0 to 0"):
            run_task(watched, listed, index, said.append)
    assert run_task(watched, listed, "0", said.append) == 0
    assert said == ["align/step_000004 was deleted before it was evaluated: raise --pin, or keep_checkpoints"]
    results = tmp_path / "align" / "eval" / "step_000004" / "results.json"
    write_json(results, {"checkpoint": "d"})
    assert run_task(watched, listed, "0", said.append) == 0
    assert said[1:] == ["align/step_000004 is evaluated already"]
