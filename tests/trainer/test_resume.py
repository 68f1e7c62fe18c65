"""A killed run, repeated, is the unbroken run."""

import json
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from data_pipeline.errors import ConfigError
from trainer.config import load_recipe
from trainer.engine import checkpoint
from trainer.observe.goodput import goodput_of
from trainer.run import _refuse_other_training
from training import held, leaving_nothing, train

EXACT = ("step", "loss", "lr", "grad_norm", "tokens", "target_tokens", "images", "samples")


@pytest.mark.slow
def test_a_run_killed_twice_has_the_losses_and_samples_of_the_unbroken_run(run_dir, trained, metrics):
    unbroken = metrics(trained / "align")
    began = time.time()
    for step, rank in ((6, 1), (10, 0)):
        with leaving_nothing(train(run_dir, "--faults", f"stop:{rank}@{step}")) as process:
            held(process, rank).kill()
            output, _ = process.communicate(timeout=600)
        assert process.returncode == 75, output
        assert f"rank {rank}" in output
        assert "SIGKILL" in output
        assert "Traceback" not in output
    with leaving_nothing(train(run_dir)) as process:
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    # Killed in step 10; of the steps before it those up to the last checkpoint are kept.
    last, again = re.search(
        r"resuming after step (\d+); (\d+) steps of before are trained again", output
    ).groups()
    assert int(last) + int(again) == 9
    resumed = metrics(run_dir / "align")
    assert [{k: m[k] for k in EXACT} for m in resumed] == [{k: m[k] for k in EXACT} for m in unbroken]
    # A start whose peer was lost, and one that was killed itself: neither was an error of its own.
    starts = sorted((run_dir / "align" / "attempts").glob("[0-9]*.json"))
    assert [json.loads(file.read_text())["ended"] for file in starts] == [75, 75, 0]
    # Where the time went, from the directory alone: all of it, but for the first launcher's start.
    split, elapsed = goodput_of(run_dir / "align", resumed), time.time() - began
    assert 0.6 * elapsed < split.wall < elapsed + 1  # the kernel tells when it booted in whole seconds
    assert split.productive + split.data == pytest.approx(sum(m["step_s"] for m in resumed), rel=0.05)
    assert min(split.restart, split.wasted) > 0


@pytest.fixture
def begun(trained, tmp_path):
    """A copy of the trained run: each start leaves its attempt there, refused ones too."""
    return Path(shutil.copytree(trained, tmp_path / "begun"))


def test_a_finished_stage_is_left_as_it_is(begun, fovea, metrics):
    before = metrics(begun / "align")
    done = fovea("train", begun / "recipe.yaml", "--stage", "align", "--run", begun, "--nproc", 2)
    assert done.returncode == 0, done.stderr
    assert "finished already" in done.stdout
    assert metrics(begun / "align") == before


def test_resume_with_another_learning_rate_is_refused_naming_it(begun, fovea):
    done = fovea(
        "train",
        begun / "recipe.yaml",
        "--stage",
        "align",
        "--run",
        begun,
        "--nproc",
        2,
        "stages.align.lr=1e-5",
    )
    assert done.returncode == 2
    assert "stage.lr" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_goes_on_with_another_number_of_ranks_with_the_samples_and_losses_of_the_unbroken_run(
    run_dir, trained, fovea, metrics
):
    shutil.copytree(trained / "align", run_dir / "align")
    words = ["train", run_dir / "recipe.yaml", "--stage", "instruct", "--run", run_dir]
    done = fovea(*words, "--nproc", 2, "stages.instruct.checkpoint_every=2")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(run_dir / "instruct" / "checkpoints" / "step_000004")
    done = fovea(*words, "--nproc", 1)
    assert done.returncode == 0, done.stderr
    assert "resuming after step 2" in done.stdout
    resumed, unbroken = (metrics(d / "instruct") for d in (run_dir, trained))
    same = ("step", "lr", "tokens", "target_tokens", "images", "samples", "ledger", "window", "row")
    assert [{k: m[k] for k in same} for m in resumed] == [{k: m[k] for k in same} for m in unbroken]
    assert [m["loss"] for m in resumed] == pytest.approx([m["loss"] for m in unbroken], abs=1e-4)


def test_a_number_of_ranks_that_does_not_divide_the_global_batch_is_refused_naming_those_that_do(
    begun, fovea
):
    done = fovea("train", begun / "recipe.yaml", "--stage", "align", "--run", begun, "--nproc", 3)
    assert done.returncode == 2
    assert "Allowed rank counts (--nproc): 1, 2" in done.stderr


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(run_dir, trained, fovea, metrics):
    first = fovea("train", run_dir / "recipe.yaml", "--stage", "align", "--run", run_dir, "--nproc", 2)
    assert first.returncode == 0, first.stderr
    newest = run_dir / "align" / "checkpoints" / "step_000012"
    shard = newest / "rank_00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    again = fovea("train", run_dir / "recipe.yaml", "--stage", "align", "--run", run_dir, "--nproc", 2)
    assert again.returncode == 0, again.stderr
    assert "resuming after step 8" in again.stdout
    assert "resuming after step 8; 4 steps of before are trained again" in again.stdout
    assert "4 steps are trained again, from the checkpoint of step 8 on" in again.stderr
    (event,) = (json.loads(line) for line in (run_dir / "align" / "events.jsonl").read_text().splitlines())
    assert (event["resumed_from"], event["steps_lost"]) == (8, 4)
    names = sorted(p.name for p in newest.parent.iterdir() if p.name.startswith("step"))
    assert names == ["step_000008", "step_000012", "step_000012.corrupt"]
    unbroken = metrics(trained / "align")
    assert [m["loss"] for m in metrics(run_dir / "align")] == [m["loss"] for m in unbroken]


@pytest.mark.slow
def test_a_run_whose_disk_is_full_stops_and_goes_on_from_the_checkpoint_before(
    run_dir, trained, fovea, metrics
):
    words = ["train", run_dir / "recipe.yaml", "--stage", "align", "--run", run_dir, "--nproc", 2]
    done = fovea(*words, "--faults", "enospc:1@8")
    assert done.returncode == 3, done.stderr
    assert "the checkpoint of step 8 could not be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    names = [p.name for p in (run_dir / "align" / "checkpoints").iterdir()]
    assert [name for name in names if not name.startswith("frozen")] == ["step_000004"]
    again = fovea(*words)
    assert again.returncode == 0, again.stderr
    assert "resuming after step 4" in again.stdout
    assert [m["loss"] for m in metrics(run_dir / "align")] == [m["loss"] for m in metrics(trained / "align")]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, for a run directory."""
    room = tmp_path / "disk"
    room.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", room], check=False).returncode:
        pytest.skip("no right to mount a file system")
    yield room
    subprocess.run(["umount", "--lazy", room], check=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_disk_that_is_filled_by_others_amid_a_run_ends_it_with_code_3_and_costs_no_checkpoint(
    prepared, small_disk, trained, metrics
):
    run = Path(shutil.copytree(prepared, small_disk / "run", ignore=shutil.ignore_patterns("raw")))
    filler = small_disk / "filler"
    with leaving_nothing(train(run, "--faults", "stop:0@7")) as process:
        main = held(process)
        with suppress(OSError), filler.open("wb", buffering=0) as f:
            while True:
                f.write(bytes(4096))
        main.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 3, output
    assert "No space left on device" in output
    assert "bytes are free in" in output
    assert "Traceback" not in output
    found, rejected = checkpoint.newest(run / "align")
    assert (found.step, rejected) == (4, [])
    with leaving_nothing(train(run)) as process:  # still full
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 3, output
    assert "Traceback" not in output
    filler.unlink()
    with leaving_nothing(train(run)) as process:
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert [m["loss"] for m in metrics(run / "align")] == [m["loss"] for m in metrics(trained / "align")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_directory_that_may_not_be_written_to_is_named(prepared, small_disk, fovea):
    run = Path(shutil.copytree(prepared, small_disk / "run", ignore=shutil.ignore_patterns("raw")))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    done = fovea("train", run / "recipe.yaml", "--stage", "align", "--run", run, "--nproc", 2)
    assert done.returncode == 3, done.stderr
    assert f"Read-only file system ({run / 'align'})" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_rank_that_is_killed_as_it_writes_a_checkpoint_costs_that_one_alone(
    run_dir, trained, fovea, metrics
):
    words = ["train", run_dir / "recipe.yaml", "--stage", "align", "--run", run_dir, "--nproc", 2]
    done = fovea(*words, "--faults", "kill:1@ckpt2")
    assert done.returncode == 75, done.stderr
    assert "Traceback" not in done.stderr
    found, rejected = checkpoint.newest(run_dir / "align")
    assert (found.step, rejected) == (4, [])
    assert (run_dir / "align" / "checkpoints" / "step_000008.tmp").is_dir()
    again = fovea(*words)
    assert again.returncode == 0, again.stderr
    assert "resuming after step 4; " in again.stdout
    resumed = metrics(run_dir / "align")
    assert [m["loss"] for m in resumed] == [m["loss"] for m in metrics(trained / "align")]
    assert goodput_of(run_dir / "align", resumed).wasted > 0
    left = [p.name for p in (run_dir / "align" / "checkpoints").glob("step*")]
    assert sorted(left) == ["step_000008", "step_000012"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_a_run_goes_on_compiled_and_then_not_with_the_losses_of_the_run_that_never_was(
    run_dir, trained, fovea, metrics
):
    """Compiled code rounds bfloat16 elsewhere; samples are the same."""
    shutil.copytree(trained / "align", run_dir / "align")
    for compiled in ("true", "false"):
        shutil.rmtree(run_dir / "align" / "checkpoints" / "step_000012")
        words = ["--stage", "align", "--run", run_dir, "--nproc", 2, f"stages.align.compile={compiled}"]
        again = fovea("train", run_dir / "recipe.yaml", *words)
        assert again.returncode == 0, again.stderr
        assert "resuming after step 8" in again.stdout
        unbroken, resumed = (metrics(d / "align") for d in (trained, run_dir))
        assert [m["samples"] for m in resumed] == [m["samples"] for m in unbroken]
        want = [m["loss"] for m in unbroken]
        found = [m["loss"] for m in resumed]
        assert found == (want if compiled == "false" else pytest.approx(want, abs=2e-3))
        assert (found == want) == (compiled == "false")  # it was compiled


def test_a_stage_does_not_start_from_one_that_was_trained_by_another_recipe(run_dir, trained, fovea):
    shutil.copytree(trained / "align", run_dir / "align")
    words = ["train", run_dir / "recipe.yaml", "--stage", "instruct", "--run", run_dir, "--nproc", 2]
    done = fovea(*words, "stages.align.lr=1e-5", "stages.align.mixture={scenes_alt: 1}")
    assert done.returncode == 2
    assert "stage.lr: 0.003 in the checkpoint, 1e-05 now" in done.stderr
    assert "stage.mixture: " in done.stderr
    assert f"mv {run_dir / 'align'} {run_dir / 'align'}.old" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (run_dir / "instruct" / "checkpoints").exists()


def test_how_the_earlier_stage_was_computed_may_change(trained):
    stage = load_recipe(trained / "recipe.yaml").stage("align")
    found, _ = checkpoint.newest(trained / "align")
    other = {"ds_config": "zero3-large", "micro_batch": 1, "checkpoint_every": 7}
    _refuse_other_training(stage.model_copy(update=other), found)
    with pytest.raises(ConfigError, match=r"clip: 1\.0 in the checkpoint, 2\.0 now"):
        _refuse_other_training(stage.model_copy(update={"clip": 2.0}), found)


def test_a_stage_without_its_predecessor_says_which_command_is_missing(run_dir, fovea):
    done = fovea("train", run_dir / "recipe.yaml", "--stage", "instruct", "--run", run_dir, "--nproc", 2)
    assert done.returncode == 3
    assert "--stage align" in done.stderr
    assert "Traceback" not in done.stderr
