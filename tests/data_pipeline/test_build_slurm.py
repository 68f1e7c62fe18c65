"""The same recipe on a real Slurm: an array does the tasks, and a killed command finds it again."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.manifest import read_manifest
from waiting import wait_for

RIG = Path(__file__).parents[3] / "shared" / "rig" / "slurm"
RECIPE = """
name: grid
tasks: 5
dedup: {documents: {exact: true, minhash: {}}}
sources:
  - {name: photos, kind: captions, path: captions.json}
  - {name: pages, kind: html, path: web}
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment of a client of a real Slurm of two virtual nodes."""
    if not RIG.exists():
        pytest.skip("needs ../shared/rig/slurm, which is not here")
    if os.geteuid() != 0:
        pytest.skip("the Slurm rig starts as root only")
    state = tmp_path_factory.mktemp("slurm")
    up = ["bash", RIG / "slurm-up.sh", state, "--nodes", "2", "--port", "18700"]
    subprocess.run(up, check=True, capture_output=True)
    yield {**os.environ, "SLURM_CONF": _slurm_conf(state)}
    subprocess.run(["bash", RIG / "slurm-down.sh", state, "--purge"], check=False, capture_output=True)


def _slurm_conf(state: Path) -> str:
    shown = subprocess.run(
        ["bash", "-c", f'source "{state}/env.sh" && printf %s "$SLURM_CONF"'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return shown.stdout


@pytest.fixture
def inputs(tmp_path: Path, make) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(20):
        (folder / f"{n}.png").write_bytes(make.png(40, 30, color=(n * 12, 90, 10)))
    records = [{"image": f"{n}.png", "caption": f"picture {n}"} for n in range(20)]
    (folder / "captions.json").write_text(json.dumps(records))
    (folder / "web").mkdir()
    for n in range(8):  # the last two tell almost the same
        draw = random.Random(min(n, 6))
        words = " ".join("".join(draw.choices("abcdefghij", k=6)) for _ in range(120))
        (folder / "web" / f"{n}.html").write_text(f"<html><body><p>{words} {'ab'[n % 2]}</p></body></html>")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def _command(inputs: Path, out: Path, *more: str) -> list[str]:
    recipe = str(inputs / "recipe.yaml")
    return [sys.executable, "-m", "data_pipeline.cli", "data", "build", recipe, "--out", str(out), *more]


def _slurm(*settings: str) -> list[str]:
    fixed = ("partition=main", "mem_gb=1", "time=00:10:00", "poll_s=0.5", *settings)
    return ["--executor", "slurm", *(word for s in fixed for word in ("--slurm", s))]


def _files(out: Path) -> dict[str, bytes]:
    found = (p for p in out.rglob("*") if p.is_file())
    return {str(p.relative_to(out)): p.read_bytes() for p in found if "logs" not in p.relative_to(out).parts}


def test_a_build_on_slurm_is_byte_identical_to_a_local_one(cluster, inputs, tmp_path):
    subprocess.run(_command(inputs, tmp_path / "local"), check=True, capture_output=True)
    ran = subprocess.run(
        _command(inputs, tmp_path / "slurm", *_slurm()),
        env=cluster,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert _files(tmp_path / "slurm") == _files(tmp_path / "local")
    (dedup,) = read_manifest(tmp_path / "slurm").exclusions
    assert sum(dedup.reasons["pages"]["samples"].values()) == 1


def test_a_killed_command_finds_its_array_again_and_submits_no_second_one(cluster, inputs, tmp_path):
    out = tmp_path / "out"
    command = _command(inputs, out, *_slurm("max_running=1"))
    first = subprocess.Popen(command, env=cluster, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    noted = wait_for(lambda: list(out.glob("logs/*/slurm_job.json")))
    first.send_signal(signal.SIGKILL)
    first.wait()
    job = json.loads(noted[0].read_text())["job_id"]
    local = subprocess.run(_command(inputs, out), env=cluster, capture_output=True, text=True, check=False)
    assert (local.returncode, f"scancel {job}" in local.stderr) == (4, True), local.stderr
    ran = subprocess.run(command, env=cluster, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(noted[0].read_text())["job_id"] == job
    subprocess.run(_command(inputs, tmp_path / "local"), check=True, capture_output=True)
    assert _files(out) == _files(tmp_path / "local")


def test_a_partition_that_is_not_there_is_refused_with_what_was_asked_for(cluster, inputs, tmp_path):
    ran = subprocess.run(
        _command(inputs, tmp_path / "out", *_slurm("partition=nowhere")),
        env=cluster, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 3
    assert "nowhere" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_tasks_that_end_undone_are_named_with_the_end_of_their_log(cluster, inputs, tmp_path):
    out = tmp_path / "out"
    waiting = subprocess.Popen(
        _command(inputs, out, *_slurm("max_running=1")), env=cluster, stderr=subprocess.PIPE, text=True
    )
    noted = wait_for(lambda: list(out.glob("logs/*/slurm_job.json")))
    subprocess.run(["scancel", json.loads(noted[0].read_text())["job_id"]], env=cluster, check=True)
    _, said = waiting.communicate(timeout=600)
    assert waiting.returncode == 75
    assert "tasks undone" in said
    assert "repeat the same command" in said
    subprocess.run(_command(inputs, out), check=True, capture_output=True)
