"""Trackers with their real packages, where installed: the numbers, one run across a resume, no secrets."""

import importlib.util
import json
import sqlite3

import pytest

from data_pipeline.errors import PreflightError
from trainer.cli import main
from trainer.observe.trackers import MlflowSink, TensorBoardSink, WandbSink, chosen, open_trackers

PAGE = {"seed": 3, "model": {"kind": "tiny"}}
SECRET = "hf_averysecretvalue"
SCORE = "eval/coco_retrieval/image_retrieval_recall@1"


def line(step):
    return {
        "stage": "align",
        "step": step,
        "loss": 1.0 / step,
        "loss/scenes": 2.0,
        "time": 1e9,
        "grad_norm": None,
    }


def written(open_sink, *steps):
    sink = open_sink()
    for step in steps:
        sink.write(line(step))
    sink.add(steps[-1], {SCORE: 0.5})  # evaluated after its step
    sink.close()


def held(directory):
    return b"".join(p.read_bytes() for p in directory.rglob("*") if p.is_file())


def test_a_tracker_that_is_named_and_not_installed_is_refused_with_the_fix(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PreflightError, match=r"pip install 'fovea-vlm\[wandb\]'"):
        chosen(("wandb",))
    assert chosen(None) == ()
    assert chosen(()) == ()


def test_without_a_tracker_nothing_is_opened(tmp_path):
    assert open_trackers((), tmp_path, "r", PAGE) == []


def test_tensorboard_gets_the_numbers_of_each_step(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    written(lambda: TensorBoardSink(tmp_path), 1, 2)
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "loss/scenes", SCORE}
    assert [(e.step, e.value) for e in events.Scalars(SCORE)] == [(2, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 0.5)]


def test_wandb_is_offline_and_a_resumed_stage_keeps_its_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr("sys.argv", ["fovea", f"data.datasets=[https://user:{SECRET}@host/d]"])
    stage = tmp_path / "align"
    stage.mkdir()
    for steps in ((1, 2), (2, 3)):
        written(lambda: WandbSink(stage, "r", PAGE), *steps)
    run_id = json.loads((stage / "trackers.json").read_text())["wandb"]
    runs = [p for p in (stage / "wandb").iterdir() if p.is_dir() and p.name.startswith("offline-run-")]
    assert runs
    assert all((p / f"run-{run_id}.wandb").is_file() for p in runs)
    everything = held(stage)
    assert b"loss/scenes" in everything
    assert SCORE.encode() in everything
    for secret in (SECRET, "0123456789" * 4):
        assert secret.encode() not in everything


@pytest.mark.slow  # the package makes its tables first
def test_mlflow_gets_the_numbers_and_a_resumed_stage_keeps_its_run(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    stage = tmp_path / "align"
    for steps in ((1, 2), (3,)):
        written(lambda: MlflowSink(stage, "r", PAGE), *steps)
    with sqlite3.connect(tmp_path / "mlflow.db") as db:
        runs = db.execute("select run_uuid, name, status from runs").fetchall()
        points = db.execute("select step, value from metrics where key = 'loss' order by step").fetchall()
        scores = db.execute("select key, step from metrics where key like 'eval/%' order by step").fetchall()
    run_id = json.loads((stage / "trackers.json").read_text())["mlflow"]
    assert runs == [(run_id, "r-align", "FINISHED")]
    assert points == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert scores == [(SCORE.replace("@", "_"), 2), (SCORE.replace("@", "_"), 3)]
    assert SECRET.encode() not in held(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is not None, reason="mlflow is installed")
def test_a_tracker_that_is_not_installed_is_refused_before_any_rank_starts(run_dir, capsys):
    words = ["train", run_dir / "recipe.yaml", "--stage", "align", "--run", run_dir, "--nproc", 2]
    assert main([*map(str, words), "observe.trackers=[mlflow]"]) == 3
    assert "pip install 'fovea-vlm[mlflow]'" in capsys.readouterr().err
    assert not (run_dir / "align").exists()
