"""The road of `fovea demo --fast` as a chain on a real Slurm, 2 nodes x 2 ranks: its scores are the demo's.

Many minutes, so on request alone: FOVEA_CLUSTER_DEMO names the directory of a demo that was run here.
"""

import json
import os
import re
import shutil
from pathlib import Path
from statistics import mean

import pytest

from trainer.config import load_recipe
from trainer.demo import FAST_DATA

DEMO = os.environ.get("FOVEA_CLUSTER_DEMO")
SAME = ("step", "tokens", "target_tokens", "images", "samples", "ledger", "window", "row", "lr")
COUNTS = " ".join(f"sources.{name}.count={count}" for name, count in FAST_DATA.items())
NOISE = {
    "loss.right_image": 0.02,
    "loss.wrong_image": 0.02,
    "captions.CIDEr": 0.25,
    "vqa.accuracy": 0.1,  # half of its 95 % interval, of 80 questions
}
HALVED = ("defaults.micro_batch=2", "stages.align.micro_batch=2")  # as there are twice as many ranks

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not DEMO, reason="on request: FOVEA_CLUSTER_DEMO names what `fovea demo --fast` made"),
]


def lines_of(run, stage):
    return [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]


def scores_of(run, stage):
    (file,) = (run / stage / "eval").glob("step_*/results.json")
    page = json.loads(file.read_text())
    return {
        "vqa.accuracy": page["vqa"]["accuracy"],
        "captions.CIDEr": page["captions"]["CIDEr"],
        "loss.right_image": page["loss"]["right_image"],
        "loss.wrong_image": page["loss"]["wrong_image"],
    }


def test_a_chain_over_two_nodes_ends_with_the_scores_of_the_demo_on_this_machine(cluster, tmp_path):
    demo, run = Path(DEMO).resolve(), tmp_path / "run"
    run.mkdir()
    shutil.copy(demo / "recipe.yaml", run)
    shutil.copytree(demo / "backbones", run / "backbones")
    given = {
        "INPUTS": demo / "raw",
        "CURATE_OPTIONS": f"--slurm mem_gb=1 --slurm poll_s=0.5 {COUNTS}",
        "RANKS_PER_NODE": 2,
        "OMP_NUM_THREADS": 1,
    }
    words = ("fovea", "chain", run / "recipe.yaml", "--run", run, "--curate", "demo", *HALVED)
    jobs = re.findall(r"^([\w ]+?) +job (\d+) ", cluster.command(*words, **given).stdout, re.MULTILINE)
    assert len(jobs) == 9
    for name, job in jobs:
        state = cluster.wait(job, seconds=1800)["JobState"]
        assert state == "COMPLETED", (name, next((run / "jobs").glob(f"*-{job}.out")).read_text())
    assert (run / "data" / "manifest.json").read_bytes() == (demo / "data" / "manifest.json").read_bytes()

    for stage in load_recipe(run / "recipe.yaml").stages:
        ours, theirs = lines_of(run, stage.name), lines_of(demo, stage.name)
        assert [[line[k] for k in SAME] for line in ours] == [[line[k] for k in SAME] for line in theirs]
        apart = [abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True)]
        print(f"{stage.name}: {len(ours)} steps, losses apart {mean(apart):.2g}, at most {max(apart):.2g}")
        scores, local = scores_of(run, stage.name), scores_of(demo, stage.name)
        for metric, score in scores.items():
            print(f"  {metric:<18}{score:.4f}  demo {local[metric]:.4f}")
        # What bf16 makes of other sums: the first steps agree to three digits, later ones stray.
        assert max(apart[:5]) < 2e-3
        assert mean(apart) < 0.01
        for metric, most in NOISE.items():
            assert abs(scores[metric] - local[metric]) < most, metric
