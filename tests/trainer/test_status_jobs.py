"""What Slurm says of a run's jobs in `fovea status`. tests/cluster asks a real one; here stand-ins answer."""

import json
import sys
from pathlib import Path

import pytest

from trainer import scheduler
from trainer.observe.status import describe, status_of, with_jobs
from trainer.scheduler import jobs_of_run, mark_of


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Puts programs of these names on a PATH that has no others: each prints its lines, or runs Python."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(scheduler, "GLANCE_S", 60.0)  # a stand-in starts an interpreter

    def put(name: str, *lines: str, program: str = "") -> None:
        file = programs / name
        file.write_text(f"#!{sys.executable}\n{program or f'print({chr(10).join(lines)!r})'}\n")
        file.chmod(0o755)

    return put


@pytest.fixture
def run(tmp_path) -> Path:
    """A run whose first stage was trained by job 7."""
    directory = tmp_path / "run"
    (directory / "align" / "attempts").mkdir(parents=True)
    (directory / "recipe.resolved.yaml").write_text("name: small\nstages:\n- {name: align, steps: 4}\n")
    (directory / "align" / "attempts" / "000001.json").write_text(json.dumps({"job": "7", "pid": 1}))
    return directory


def test_jobs_of_this_run_are_shown_and_no_others(slurm, run):
    mark = mark_of(run)
    slurm(
        "squeue",
        "7|RUNNING|None|1:02|n[1-2]|fovea-stage1",
        f"9|PENDING|Dependency|0:00||fovea-pretrain-{mark}",
        f"12_[3-5]|PENDING|Resources|0:00||fovea-watch-quick-000001-{mark}",
        "10|RUNNING|None|5:00|n3|fovea-pretrain-00000000",
        "11|RUNNING|None|5:00|n4|somebody|else's",
    )
    status = with_jobs(status_of(run))
    assert [(job.number, job.name) for job in status.jobs] == [
        ("7", "stage1"),
        ("9", "pretrain"),
        ("12_[3-5]", "watch-quick-000001"),
    ]
    assert list(describe(status))[-4:] == [
        "jobs",
        "  7         stage1              running  1:02  n[1-2]",
        "  9         pretrain            pending  0:00  (Dependency)",
        "  12_[3-5]  watch-quick-000001  pending  0:00  (Resources)",
    ]
    assert status.to_json()["jobs"][1]["state"] == "PENDING"


def test_a_chain_that_waits_is_shown_before_its_first_stage_begins(slurm, tmp_path):
    run = tmp_path / "run"
    (run / "jobs").mkdir(parents=True)
    slurm("squeue", f"9|PENDING|Priority|0:00||fovea-align-{mark_of(run)}")
    status = with_jobs(status_of(run))
    assert list(describe(status)) == [
        f"run  {run}",
        "no stage has begun",
        "",
        "jobs",
        "  9  align  pending  0:00  (Priority)",
    ]


def test_how_the_owners_job_ended_is_shown_where_slurm_keeps_accounts(slurm, run):
    slurm("squeue")
    slurm("sacct", "7|TIMEOUT|0:15|08:00:00|n[1-2]|fovea-stage1")
    assert list(describe(with_jobs(status_of(run))))[-1] == "  7  stage1  timeout  08:00:00  n[1-2] (0:15)"
    slurm("sacct", program="raise SystemExit('Slurm accounting storage is disabled')")
    assert with_jobs(status_of(run)).jobs == ()


@pytest.mark.parametrize("answer", ["raise SystemExit(1)", "import time; time.sleep(600)"])
def test_a_slurm_that_does_not_answer_leaves_the_screen_to_the_run_directory(slurm, run, answer, monkeypatch):
    monkeypatch.setattr(scheduler, "GLANCE_S", 1.0)
    slurm("squeue", program=answer)
    alone = status_of(run)
    assert with_jobs(alone) == alone
    assert "jobs" not in list(describe(alone))


def test_without_a_slurm_no_jobs_are_spoken_of(slurm, run):
    assert jobs_of_run(run, ["7"]) is None
