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
    ("loss", "right_image"): 0.2,
    ("loss", "wrong_image"): 0.2,
    ("captions", "CIDEr"): 0.4,
    ("vqa", "accuracy"): 0.1,  # half of its 95 % interval, of 80 questions
}
HALVED = ("defaults.micro_batch=2", "stages.align.micro_batch=2")  # as there are twice as many ranks

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not DEMO, reason="on request: FOVEA_CLUSTER_DEMO names what `fovea demo --fast` made"),
]


def lines_of(run, stage):
    return [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]


def taken(lines, *names):
    return [[line[name] for name in names] for line in lines]


def results_of(run, stage):
    """What the held-out evaluation left, with the digest of the checkpoint."""
    (file,) = (run / stage / "eval").glob("step_*/results.json")
    return json.loads(file.read_text())


def test_a_chain_over_two_nodes_ends_with_the_scores_of_this_machine(cluster, tmp_path, fovea):
    """Those of as many ranks here exactly; those of the demo's two ranks, in bf16, within noise."""
    demo, run, twin = Path(DEMO).resolve(), tmp_path / "run", tmp_path / "twin"
    for directory in (run, twin):
        shutil.copytree(demo / "backbones", directory / "backbones")
        shutil.copy(demo / "recipe.yaml", directory)
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

    shutil.copytree(demo / "data", twin / "data")
    for stage in load_recipe(run / "recipe.yaml").stages:
        words = ("train", twin / "recipe.yaml", "--stage", stage.name, "--run", twin, "--nproc", 4, *HALVED)
        for verb in (words, ("eval", twin / stage.name)):
            done = fovea(*verb)
            assert done.returncode == 0, done.stderr
        ours, theirs = lines_of(run, stage.name), lines_of(demo, stage.name)
        scores, local = results_of(run, stage.name), results_of(demo, stage.name)
        apart = [abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True)]
        print(f"{stage.name}: {len(ours)} steps, losses apart {mean(apart):.2g}, at most {max(apart):.2g}")
        for (suite, metric), most in NOISE.items():
            print(f"  {suite}.{metric}: {scores[suite][metric]:.4f}, the demo's {local[suite][metric]:.4f}")
            assert abs(scores[suite][metric] - local[suite][metric]) < most
        assert mean(apart) < 0.05
        assert taken(ours, *SAME) == taken(theirs, *SAME)
        exact = (*SAME, "loss", "grad_norm")
        assert taken(ours, *exact) == taken(lines_of(twin, stage.name), *exact)
        assert scores == results_of(twin, stage.name)
