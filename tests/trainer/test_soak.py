"""A run that is killed at random is the unbroken run. FOVEA_SOAK_S=3600 kills for an hour."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.launch import kill_all
from trainer.observe.goodput import goodput_of
from training import ranks_of, train

SECONDS = float(os.environ.get("FOVEA_SOAK_S", "60"))
STEPS = max(100, int(SECONDS * 2))
EXACT = ("step", "loss", "lr", "grad_norm", "tokens", "target_tokens", "images", "samples", "ledger", "row")
NO_PROGRESS = 93
PATIENCE = 600 + 3 * SECONDS
"""So long all steps may take, in seconds, on a machine that does other things too."""


def start(run: Path) -> subprocess.Popen[str]:
    return train(run, f"stages.align.steps={STEPS}", "stages.align.checkpoint_every=10")


def strike(process: subprocess.Popen[str], draw: random.Random) -> str:
    """Kill a rank, the launcher, or ask the run to stop."""
    what = draw.choice(("rank 0", "rank 1", "launcher", "term"))
    ranks = ranks_of(process.pid)
    match what:
        case "launcher":
            process.kill()
        case "term" if ranks:  # it hears from before it starts them
            process.terminate()
        case _ if len(ranks) == 2:
            kill_all([ranks[int(what[-1])]])
    return what


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 3 * PATIENCE)
def test_kills_at_random_times_lose_and_replay_nothing(prepared, metrics, tmp_path):
    unbroken, soaked = (Path(shutil.copytree(prepared, tmp_path / name)) for name in ("unbroken", "soaked"))
    process = start(unbroken)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output

    draw, codes, began = random.Random(7), [], time.monotonic()
    while True:
        process = start(soaked)
        while process.poll() is None and time.monotonic() - began < SECONDS:
            try:
                process.wait(draw.uniform(4, 16))
            except subprocess.TimeoutExpired:
                strike(process, draw)  # which finds nobody where the ranks have not started: it comes again
        output, _ = process.communicate(timeout=PATIENCE)
        codes.append(process.returncode)
        assert process.returncode in (0, 75, 143, -signal.SIGKILL, NO_PROGRESS), output
        if process.returncode == NO_PROGRESS:  # three kills before a checkpoint: somebody has to look
            shutil.rmtree(soaked / "align" / "attempts")
        if process.returncode == 0:
            break
    assert len(codes) > 2, codes

    before, after = metrics(unbroken / "align"), metrics(soaked / "align")
    assert [{k: m[k] for k in EXACT} for m in after] == [{k: m[k] for k in EXACT} for m in before]
    goodput = goodput_of(soaked / "align", after)
    timeline = (soaked / "align" / "timeline.jsonl").read_text().splitlines()
    lost = sum(e["steps"] for e in map(json.loads, timeline) if e["event"] == "lost")
    sys.stdout.write(f"\n{STEPS} steps, {len(codes)} starts, codes {codes}, {lost} steps lost, {goodput}\n")
