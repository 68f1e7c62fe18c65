"""A stage that evaluates its checkpoints as it trains: two ranks that share a model under ZeRO-3."""

import json
import random
import re
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data_pipeline.errors import ConfigError
from data_pipeline.manifest import sha256_file
from released import release
from trainer.benchmarks import Asked, run_tasks
from trainer.config import load_recipe
from trainer.distributed import alone
from trainer.evaluating import _unchanged, is_due
from trainer.evaluation.task import load_task
from trainer.observe.goodput import goodput_of
from trainer.observe.sinks import JsonlSink
from trainer.subject import open_subject
from trainer.trained import evaluate_trained, open_trained
from trainer.watch import Watch
from training import answering_until_held, leaving_nothing, ranks_of, train
from waiting import wait_for

EXACT = ("step", "loss", "lr", "grad_norm", "tokens", "target_tokens", "images", "samples", "window", "row")
SAID = ("raw", "blind_raw", "answer", "blind_answer", "score", "blind_score", "scores")

ZERO3 = {"stage": 3, "contiguous_gradients": True, "stage3_param_persistence_threshold": 0}
"""Nothing is kept whole: a rank that ran another module than the others would wait for ever."""

SUITE = "evaluation.suites.small={tasks: [vqa_rad, imagenet], data: released, limit: 11, batch: 2}"
EVALUATE = "stages.align.evaluate={suite: small, every: 4}"


def words(run: Path, *more: str) -> tuple[str, ...]:
    """Six steps in fp32; checkpoints after 2, 4 and 6."""
    config = run / "zero3.json"
    config.write_text(json.dumps({"zero_optimization": ZERO3}))
    keys = {"ds_config": config, "steps": 6, "checkpoint_every": 2, "keep_checkpoints": 9}
    return (*(f"stages.align.{key}={value}" for key, value in keys.items()), *more)


def end(process):
    output, _ = process.communicate(timeout=600)
    assert "Traceback" not in output, output
    return process.returncode, output


def trained_to_its_end(run: Path, *more: str) -> str:
    with leaving_nothing(train(run, *words(run, *more))) as process:
        code, output = end(process)
    assert code == 0, output
    return output


@pytest.fixture(scope="module")
def unbroken(prepared, tmp_path_factory):
    """Trained without any evaluation."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    run.mkdir()
    for part in prepared.iterdir():
        (run / part.name).symlink_to(part)
    trained_to_its_end(run)
    return run


def series(metrics, run):
    return [{k: m[k] for k in EXACT} for m in metrics(run / "align")]


def weights(run):
    """Each checkpoint's files by digest: weights and the optimizer's moments."""
    pages = sorted((run / "align" / "checkpoints").glob("step_*/COMPLETE.json"))
    return {p.parent.name: json.loads(p.read_text())["files"] for p in pages}


def result(run, step, task):
    return json.loads((run / f"align/eval/step_{step:06d}/{task}.json").read_text())


def said(file: Path) -> dict[str, dict]:
    lines = map(json.loads, file.read_text().splitlines())
    return {r["id"]: {k: r[k] for k in SAID if k in r} for r in lines}


def kept(run, step, task) -> list[dict]:
    """The answers as they came."""
    files = sorted((run / f"align/eval/step_{step:06d}/{task}.answers").glob("rank_*.jsonl"))
    return [json.loads(line) for f in files for line in f.read_text().splitlines()]


@contextmanager
def held_in_evaluation(run: Path, *words: str):
    """Training whose rank 1 stands in its first evaluation: the process, and that rank."""
    room = run / "held"
    with leaving_nothing(train(run, *words, env=answering_until_held(room))) as process:

        def answered() -> bool:
            assert process.poll() is None, process.communicate(timeout=60)[0]
            return (room / "answered").exists()

        wait_for(answered)
        yield process, ranks_of(process.pid)[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_evaluating_changes_nothing_and_answers_are_those_of_the_checkpoint(
    run_dir, unbroken, metrics, tmp_path
):
    for name in ("vqa_rad", "imagenet"):
        release(name, run_dir / "released", 12)
    output = trained_to_its_end(run_dir, SUITE, EVALUATE)
    assert "align  step 4  eval/vqa_rad/" in output
    assert series(metrics, run_dir) == series(metrics, unbroken)
    assert weights(run_dir) == weights(unbroken)

    # Eleven samples on two ranks: one of them has less to do than the other.
    assert sorted(p.name for p in (run_dir / "align/eval").iterdir()) == ["step_000004", "step_000006"]
    lines = {m["step"]: m for m in metrics(run_dir / "align")}
    for step in (4, 6):
        checkpoint = run_dir / f"align/checkpoints/step_{step:06d}"
        for task in ("vqa_rad", "imagenet"):
            page = result(run_dir, step, task)
            assert page["checkpoint"]["digest"] == sha256_file(checkpoint / "COMPLETE.json")
            assert (page["status"], page["n"]) == ("limited", 11)
            assert lines[step][f"eval/{task}/{page['primary']}"] == page["scores"][page["primary"]]
    assert not any(key.startswith("eval/") for step in (1, 2, 3, 5) for key in lines[step])

    # What `fovea watch` would do is done, and by another road it is the same.
    assert not [d for d in Watch.open(run_dir, "small").due() if d.step != 2]
    last = run_dir / "align/checkpoints/step_000006"
    tasks = [load_task(name) for name in ("vqa_rad", "imagenet")]
    asked = Asked(tasks=tasks, data=run_dir / "released", out=tmp_path, limit=11)
    run_tasks(alone(), open_subject(alone(), last, batch=3), asked)
    for task in ("vqa_rad", "imagenet"):
        ours, theirs = (said(d / f"{task}.jsonl") for d in (run_dir / "align/eval/step_000006", tmp_path))
        assert len(ours) == 11
        if task == "vqa_rad":
            assert ours == theirs
        else:
            assert ours.keys() == theirs.keys()
            for i in ours:
                assert ours[i]["scores"] == pytest.approx(theirs[i]["scores"], abs=1e-4)

    split = goodput_of(run_dir / "align", metrics(run_dir / "align"))
    assert split.evaluation > split.productive > 0
    assert split.wasted == 0

    # A stage that is finished evaluates its last checkpoint where it is asked to later: here held-out.
    trained_to_its_end(run_dir, "stages.align.evaluate={suite: heldout, every: 4}")
    ours = json.loads((run_dir / "align/eval/step_000006/results.json").read_text())
    assert metrics(run_dir / "align")[-1]["eval/heldout_loss/right_image"] == ours["loss"]["right_image"]
    assert not (run_dir / "align/eval/step_000004/results.json").exists()
    theirs = evaluate_trained(open_trained(last))
    assert ours["captions"] == theirs["captions"]
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_request_to_stop_is_heard_and_the_next_start_goes_on_from_the_answers(run_dir, unbroken, metrics):
    """With a picture that cannot be read: one rank has a batch of nothing then."""
    for name in ("vqa_rad", "imagenet"):
        release(name, run_dir / "released", 12)
    (run_dir / "released/vqa_rad/VQA_RAD Image Folder/synpic0.jpg").write_bytes(b"no picture")
    (run_dir / "released/imagenet/val/n00000000/ILSVRC2012_val_00000000.JPEG").write_bytes(b"no picture")
    asked = words(run_dir, SUITE.replace("batch: 2", "batch: 1"), EVALUATE)
    with held_in_evaluation(run_dir, *asked) as (process, rank):
        rank.send_signal(signal.SIGTERM)
        (run_dir / "held" / "go").touch()
        code, output = end(process)
    assert code == 143, output
    assert "stopped after step 4 of 6, which is saved, asked by SIGTERM" in output
    before = kept(run_dir, 4, "vqa_rad")
    assert 2 <= len(before) < 11
    assert not (run_dir / "align/eval/step_000004/imagenet.json").exists()

    output = trained_to_its_end(run_dir, *asked[4:])
    first, all_of_them = ([r for r in rs if "error" not in r] for rs in (before, kept(run_dir, 4, "vqa_rad")))
    assert len({r["id"] for r in all_of_them}) == len(all_of_them)  # none was asked for again
    assert all(r in all_of_them for r in first)
    for task in ("vqa_rad", "imagenet"):
        page = result(run_dir, 4, task)
        assert (page["status"], page["scores"]) == ("incomplete", None)
        assert page["n"] + page["missing_n"] == 11
    assert series(metrics, run_dir) == series(metrics, unbroken)
    assert weights(run_dir) == weights(unbroken)
    split = goodput_of(run_dir / "align", metrics(run_dir / "align"))
    assert split.wasted == 0
    assert min(split.evaluation, split.restart) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_rank_that_hangs_in_an_evaluation_is_named(run_dir):
    for name in ("vqa_rad", "imagenet"):
        release(name, run_dir / "released", 12)
    limits = ("stages.align.watchdog.floor_s=15", "stages.align.watchdog.first_s=200")
    asked = words(run_dir, SUITE.replace("batch: 2", "batch: 1"), EVALUATE, *limits)
    with held_in_evaluation(run_dir, *asked) as (process, rank):
        rank.suspend()
        code, output = end(process)
    assert code == 75, output
    assert re.search(r"fovea: rank 1 on \S+ stood still in evaluation.* of step 4 for .* stopped", output), (
        output
    )
    assert "Samples of rank" not in output  # those of the last step have nothing to do with it


# --- the parts ----------------------------------------------------------------------------------------


def test_what_is_drawn_in_an_evaluation_and_its_modes_do_not_reach_training():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))
    model[1].eval()  # as something frozen may be

    def drawn():
        return random.random(), float(np.random.rand()), torch.rand(3).tolist()

    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    expected = drawn()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    with _unchanged(model, compiled=True):
        assert not model[0].training
        assert not model[1](torch.ones(1, 2)).requires_grad
        drawn()
    assert drawn() == expected
    assert (model.training, model[0].training, model[1].training) == (True, True, False)


def test_checkpoints_of_multiples_and_of_the_last_step_are_evaluated(prepared):
    asked = ["stages.align.evaluate={suite: heldout, every: 8}", "stages.align.steps=18"]
    stage = load_recipe(prepared / "recipe.yaml", asked).stage("align")
    assert [step for step in range(19) if is_due(stage, step)] == [8, 16, 18]
    assert not is_due(load_recipe(prepared / "recipe.yaml").stage("align"), 12)


def test_what_would_never_be_evaluated_is_refused(prepared):
    page = prepared / "recipe.yaml"
    with pytest.raises(ConfigError, match=r"evaluate.every \(6\) is no multiple of checkpoint_every \(4\)"):
        load_recipe(page, ["stages.align.evaluate={suite: heldout, every: 6}"])
    with pytest.raises(ConfigError, match=r"'quik' is none of evaluation.suites; did you mean 'quick'"):
        load_recipe(
            page,
            [
                "evaluation.suites.quick={tasks: [scenes]}",
                "stages.align.evaluate={suite: quik, every: 4}",
            ],
        )


def test_missing_files_of_a_suite_are_said_before_training(prepared, fovea):
    done = fovea("train", prepared / "recipe.yaml", "--stage", "align", "--run", prepared, SUITE, EVALUATE)
    assert done.returncode == 3
    assert "files or folders of benchmarks are missing" in done.stderr
    assert "vqa_rad: " in done.stderr


def test_scores_stand_in_the_line_of_their_step(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl", 0)
    for step in (1, 2):
        sink.write({"step": step, "loss": 1.0 / step})
    sink.add(2, {"eval/scenes/folded": 0.5, "eval/scenes/odd": float("nan")})
    sink.write({"step": 3, "loss": 0.1})
    sink.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5, "eval/scenes/folded": 0.5, "eval/scenes/odd": None},
        {"step": 3, "loss": 0.1},
    ]
