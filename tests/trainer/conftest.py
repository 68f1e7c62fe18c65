"""A small real dataset and small real backbones, made once by the project's own commands."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from small_run import prepare

STAGES = """
defaults:
  global_batch: 4
  micro_batch: 2
  sequence_length: 96
  warmup_steps: 2
  lr: 3.0e-3
  checkpoint_every: 4
stages:
  - name: align
    init_from: backbones
    train: {connector: 1.0, new_tokens: 1.0}
    mixture: {scenes_alt: 1, scenes_dense: 1}
    neftune_alpha: 5
    steps: 12
  - name: instruct
    init_from: align
    train: {connector: 1.0, new_tokens: 1.0, language: 0.5}
    mixture: {scenes_qa: 3, scenes_text: 1}
    loss_on: answers
    steps: 4
evaluation: {captions: 8, questions: 8, documents: 8, batch: 4, max_new_tokens: 4}
observe: {norms_every: 3, peak_tflops: 0.01}
"""


def fovea(*words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`fovea ...` as a user runs it."""
    return subprocess.run(
        [sys.executable, "-m", "trainer.cli", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with recipe.yaml, data/ and backbones/; not to be written to."""
    return prepare(tmp_path_factory.mktemp("prepared"), STAGES, fovea)


@pytest.fixture
def run_dir(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the prepared run directory, for one test."""
    return Path(shutil.copytree(prepared, tmp_path / "run"))


@pytest.fixture(scope="session")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory whose two stages were trained on two ranks; not to be written to."""
    run = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("trained") / "run"))
    for stage in ("align", "instruct"):
        done = fovea("train", run / "recipe.yaml", "--stage", stage, "--run", run, "--nproc", 2)
        assert done.returncode == 0, done.stderr
    return run


def metrics(stage_dir: Path) -> list[dict[str, float]]:
    lines = (stage_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


Fovea = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(name="fovea")
def fovea_fixture() -> Fovea:
    return fovea


@pytest.fixture(name="metrics")
def metrics_fixture() -> Callable[[Path], list[dict[str, float]]]:
    return metrics
