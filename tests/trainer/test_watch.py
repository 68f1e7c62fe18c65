"""`fovea watch` on a real run: each checkpoint once, whatever dies meanwhile."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from fcntl import LOCK_EX, flock
from pathlib import Path

import psutil
import pytest
import yaml

from data_pipeline.errors import ConfigError
from data_pipeline.manifest import sha256_file
from documentation import BLOCKS, text_of
from trainer.cli import main
from trainer.evaluation.suite_results import regressions
from trainer.evaluation.task import load_task
from trainer.watch import Watch, evaluate, watch
from waiting import wait_for


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run with a suite of its own and two checkpoints, nothing evaluated."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    page = yaml.safe_load((run / "recipe.resolved.yaml").read_text())
    (shown,) = (b.text for b in BLOCKS if b.page == "docs/evaluation.md" and "suites:" in b.text)
    page["evaluation"] |= yaml.safe_load(shown)["evaluation"]
    page["evaluation"]["suites"]["quick"]["limit"] = 3
    (run / "recipe.resolved.yaml").write_text(yaml.safe_dump(page))
    for stage in ("align", "instruct"):
        shutil.rmtree(run / stage / "eval", ignore_errors=True)
        for old in sorted((run / stage / "checkpoints").glob("step_*"))[:-1]:
            shutil.rmtree(old)
    return run


def watching(run: Path, *words: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "trainer.cli", "watch", str(run), *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def results(run: Path) -> dict[str, dict]:
    return {
        str(p.relative_to(run)): json.loads(p.read_text()) for p in run.glob("*/eval/step_*/results.json")
    }


def shapes(text: str) -> set[str]:
    """The lines without their numbers."""
    return {re.sub(r"[\d.]+", "#", line) for line in text.splitlines()}


def test_each_checkpoint_is_evaluated_once_and_a_repeat_does_nothing(run, fovea):
    shutil.rmtree(run / "align" / "checkpoints")
    said: list[str] = []
    watch(Watch.open(run, "quick"), once=True, poll_s=0.1, say=said.append)
    page = json.loads((run / "instruct/eval/step_000004/scenes.json").read_text())
    checkpoint = run / "instruct/checkpoints/step_000004"
    assert page["checkpoint"]["digest"] == sha256_file(checkpoint / "COMPLETE.json")
    assert page["n"] == page["limit"] == 3
    assert shapes(said[0]) <= shapes(text_of("evaluation.md"))

    before = (run / "instruct/eval/step_000004/quick.log").stat().st_mtime_ns
    again = fovea("watch", run, "--suite", "quick", "--once")
    assert (again.returncode, again.stdout) == (0, "")
    assert (run / "instruct/eval/step_000004/quick.log").stat().st_mtime_ns == before


def test_another_limit_seed_or_checkpoint_is_evaluated_anew(run):
    watched = Watch.open(run, "quick")
    (due,) = [d for d in watched.due() if d.stage == "instruct"]
    due.results.mkdir(parents=True)

    def stands(**changes) -> bool:
        page = {"checkpoint": {"digest": due.digest}, "status": "limited", "limit": 3, "seed": 0} | changes
        (due.results / "scenes.json").write_text(json.dumps(page))
        return watched.is_done(due)

    assert stands()
    assert not stands(limit=5)
    assert not stands(seed=1)
    assert not stands(status="incomplete")
    assert not stands(checkpoint={"digest": "of another"})


@pytest.mark.slow
def test_a_damaged_checkpoint_is_given_up_and_the_others_are_evaluated(run, fovea):
    shard = next(
        p for p in (run / "align/checkpoints").rglob("*") if p.is_file() and p.stat().st_size > 10_000
    )
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    for _ in range(2):  # and it stays given up
        done = fovea("watch", run, "--once")
        assert done.returncode == 4
        assert "align/eval/step_000012/heldout.log" in done.stderr
        assert "delete heldout.failed.json" in done.stderr
    assert "align/step_000012 is given up, code 4" not in done.stdout  # said the first time alone
    assert list(results(run)) == ["instruct/eval/step_000004/results.json"]
    failed = json.loads((run / "align/eval/step_000012/heldout.failed.json").read_text())
    assert (failed["tries"], failed["code"]) == (1, 4)
    assert any("was altered" in line for line in failed["said"])


@pytest.mark.slow
def test_checkpoints_that_come_while_it_watches_and_killed_evaluations(run):
    """The first evaluation is killed and tried again; the last stage's checkpoint comes late."""
    late = run / "instruct/checkpoints/step_000004"
    late.rename(run / "late")
    watcher = watching(run, "--poll", "1")
    child = wait_for(lambda: psutil.Process(watcher.pid).children())[0]
    child.kill()
    assert "align/step_000012 failed with code -9 and is tried again" in watcher.stdout.readline()
    wait_for(lambda: "align/eval/step_000012/results.json" in results(run))
    wait_for(lambda: not (run / "align/eval/step_000012/heldout.failed.json").exists())

    second = watching(run, "--once")
    _, said = second.communicate(timeout=600)
    assert second.returncode == 3
    assert "another process watches" in said
    assert watcher.poll() is None  # the last stage is to come

    (run / "late").rename(late)
    watcher.communicate(timeout=600)
    assert watcher.returncode == 0
    assert sorted(results(run)) == [
        "align/eval/step_000012/results.json",
        "instruct/eval/step_000004/results.json",
    ]


@pytest.mark.slow
def test_a_checkpoint_that_another_process_evaluates_is_tried_again_and_not_given_up(run):
    watched, said = Watch.open(run, "quick"), list[str]()
    (due,) = [d for d in watched.due() if d.stage == "instruct"]
    (due.results / "scenes.answers").mkdir(parents=True)
    with (due.results / "scenes.answers/lock").open("w") as f:
        flock(f, LOCK_EX)
        assert evaluate(watched, due, said.append) == 3
    assert "failed with code 3 and is tried again" in said[0]
    assert due in watched.due()
    assert evaluate(watched, due, said.append) == 0
    assert not (due.results / "quick.failed.json").exists()


@pytest.mark.slow
def test_a_watcher_that_is_stopped_leaves_no_process_and_the_next_goes_on(run, fovea):
    watcher = watching(run)
    child = wait_for(lambda: psutil.Process(watcher.pid).children())[0]
    watcher.send_signal(signal.SIGTERM)
    _, said = watcher.communicate(timeout=600)
    assert watcher.returncode == 143, said
    assert not child.is_running()
    assert not results(run)
    done = fovea("watch", run, "--once")
    assert done.returncode == 0, done.stderr
    assert len(results(run)) == 2


def test_a_task_that_became_surely_worse_is_named(run):
    """Answers that were right and are wrong now, on every sample; the same answers are no regression."""
    watched = Watch.open(run, "quick")
    (due,) = [d for d in watched.due() if d.stage == "align"]
    _write(due.results.parent / "step_000004", "yes")
    _write(due.results, "yes")
    assert regressions(due.results, watched.suite) == []
    _write(due.results, "no")
    (found,) = regressions(due.results, watched.suite)
    assert (found["task"], found["from"], found["difference"]) == ("scenes", "step_000004", -1.0)


def _write(directory: Path, answer: str) -> None:
    """A result of the task `scenes` in which every question was answered so, and the right answer is yes."""
    directory.mkdir(parents=True, exist_ok=True)
    page = {
        "task": "scenes",
        "metric": "exact",
        "primary": "folded",
        "status": "limited",
        "n": 30,
        "limit": 3,
        "checkpoint": {"name": directory.name, "digest": directory.name},
        "scores": {"folded": float(answer == "yes")},
        "page": load_task("scenes").model_dump(mode="json"),
    }
    (directory / "scenes.json").write_text(json.dumps(page))
    records = [
        {"id": str(n), "unit": str(n), "prompt": "?", "raw": answer, "blind_raw": "", "truths": ["yes"],
         "options": [], "about": {}, "answer": answer, "score": float(answer == "yes")}
        for n in range(30)
    ]  # fmt: skip
    (directory / "scenes.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_what_is_no_run_and_what_is_no_suite_is_refused(run, tmp_path, capsys):
    with pytest.raises(ConfigError, match="is no run directory"):
        Watch.open(tmp_path / "nowhere", "heldout")
    with pytest.raises(ConfigError, match="no suite 'quik'; did you mean 'quick'"):
        Watch.open(run, "quik")
    assert main(["eval", str(tmp_path / "nowhere"), "--suite", "quick"]) == 2
    assert "belongs to no run" in capsys.readouterr().err
