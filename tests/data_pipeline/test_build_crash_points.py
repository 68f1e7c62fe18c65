"""A build that dies at any write, rename, removal or new directory ends, run again, as if it had not died."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CRASH = Path(__file__).parent / "crash"
RECIPE = """
name: crash
tasks: 2
bad_inputs: drop
shard_samples: 3
sources:
  - {name: photos, kind: captions, path: captions.json}
  - {name: pages, kind: html, path: web, max_chars: 120}
"""


@pytest.fixture
def inputs(tmp_path: Path, make) -> Path:
    folder = tmp_path / "in"
    (folder / "web").mkdir(parents=True)
    for n in range(5):
        (folder / f"{n}.png").write_bytes(make.png(40, 30, color=(n * 40, 90, 10)))
        (folder / "web" / f"{n}.png").write_bytes(make.png(40, 30, color=(9, n * 40, 77)))
        page = f"<h1>Page {n}</h1><p>{'some words here ' * 6}</p><img src='{n}.png'><p>after it {n}</p>"
        (folder / "web" / f"{n}.html").write_text(f"<html><body>{page}</body></html>")
    records = [{"image": f"{n}.png", "caption": f"picture {n}"} for n in range(5)]
    (folder / "captions.json").write_text(json.dumps([*records, {"image": "none.png", "caption": "gone"}]))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.mark.slow
def test_a_build_that_dies_at_any_change_of_a_file_ends_byte_identical_when_repeated(inputs, tmp_path):
    shim = tmp_path / "die_at.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", shim, CRASH / "die_at.c", "-ldl"], check=True)
    command = [sys.executable, CRASH / "every_point.py", shim, inputs / "recipe.yaml", inputs, tmp_path]
    ran = subprocess.run(
        command, env={**os.environ, "LD_PRELOAD": str(shim)}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout)
    assert found["points"] > 50
    assert found["different"] == []
