"""A run directory with a small real dataset and small real backbones, made by the project's own commands."""

import subprocess
from collections.abc import Callable
from pathlib import Path

MODEL = """
name: small
seed: 3
data: {datasets: [data]}
backbones:
  path: backbones
  vision: {width: 16, layers: 1, heads: 2, steps: 2, batch: 4}
  language: {width: 32, layers: 2, heads: 2, kv_heads: 1, vocabulary: 300, steps: 2, batch: 2}
model:
  image: {longest_edge: 32, patch: 8}
  connector: {kind: pixel_shuffle, factor: 2}
"""
COUNTS = {"scenes_alt": 60, "scenes_dense": 60, "scenes_qa": 60, "scenes_dialogue": 5, "scenes_text": 20}


def prepare(run: Path, stages: str, fovea: Callable[..., subprocess.CompletedProcess[str]]) -> Path:
    """recipe.yaml, which ends in `stages`, data/ and backbones/ in the empty directory `run`."""
    (run / "recipe.yaml").write_text(MODEL + stages, encoding="utf-8")
    for words in (
        ("data", "scenes", "--out", run / "raw", "--pages", 2, "--pdfs", 1),
        ("data", "build", "demo", "--inputs", run / "raw", "--out", run / "data",
         *(f"sources.{name}.count={count}" for name, count in COUNTS.items())),
        ("backbones", run / "recipe.yaml", "--run", run),
    ):  # fmt: skip
        done = fovea(*words)
        assert done.returncode == 0, done.stderr
    return run
