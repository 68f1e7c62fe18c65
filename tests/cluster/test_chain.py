"""`fovea chain` on a real Slurm: four stages behind gates, evaluated beside; again, only what is missing."""

import json
import re

import pytest

from trainer.engine import checkpoint

STAGES = ("align", "pretrain", "instruct", "adapt")
TOO_HIGH = "stages.pretrain.gate={vqa.accuracy: 2}"
IN_REACH = "stages.pretrain.gate={loss.right_image: {max: 100}, vqa.accuracy: 0}"


@pytest.fixture
def chain(cluster, run_dir):
    def run(*words, check=True):
        return cluster.command(
            "fovea",
            "chain",
            run_dir / "recipe.yaml",
            "--run",
            run_dir,
            *words,
            check=check,
            OMP_NUM_THREADS=1,
        )

    return run


def jobs(said):
    """Name -> number, of the lines of a chain."""
    return dict(re.findall(r"^([\w ]+?) +job (\d+) ", said.stdout, re.MULTILINE))


def said_by(run, cluster, job):
    """The output of a job of the chain."""
    (file,) = (run / "jobs").glob(f"*-{job}.out")
    return file.read_text()


def test_a_chain_stops_at_a_gate_says_why_and_goes_on_where_it_stopped(cluster, run_dir, chain):
    first = jobs(chain(TOO_HIGH))
    assert list(first) == [f"{kind}{stage}" for stage in STAGES for kind in ("", "evaluate ")]
    again = chain(TOO_HIGH)
    assert jobs(again) == first  # found by their names; none is submitted
    assert "submitted" not in again.stdout
    waiting = json.loads(cluster.command("fovea", "status", run_dir, "--json").stdout)["jobs"]
    assert (first["adapt"], "adapt", "PENDING") in {(j["number"], j["name"], j["state"]) for j in waiting}
    assert {j["number"] for j in waiting} <= set(first.values())
    assert cluster.wait(first["evaluate pretrain"])["ExitCode"] == "3:0"
    why = said_by(run_dir, cluster, first["evaluate pretrain"])
    assert "stage 'pretrain' does not reach its gate at step 3:" in why
    assert re.search(r"vqa.accuracy: [\d.]+, needs at least 2", why)
    for name in ("instruct", "evaluate instruct", "adapt", "evaluate adapt"):
        assert cluster.wait(first[name])["JobState"] == "CANCELLED"
    assert cluster.wait(first["evaluate align"])["JobState"] == "COMPLETED"

    refused = chain(TOO_HIGH, check=False)
    assert refused.returncode == 3
    assert "needs at least 2" in refused.stderr
    assert "submitted" not in refused.stdout

    second = jobs(chain(IN_REACH))
    assert list(second) == ["instruct", "evaluate instruct", "adapt", "evaluate adapt"]
    for name, job in second.items():
        assert cluster.wait(job)["JobState"] == "COMPLETED", (name, cluster.job(job))
    for stage in STAGES:
        found, rejected = checkpoint.newest(run_dir / stage)
        assert (found.world_size, rejected) == (2, [])
        assert (run_dir / stage / "eval" / found.path.name / "results.json").is_file()
    assert (run_dir / "report.html").is_file()

    last = chain(IN_REACH)
    assert last.stdout.count("done") == 8
    assert not jobs(last)

    # Trained anew, a stage makes those after it stale: nothing is trained on top of what is not theirs.
    (run_dir / "align").rename(run_dir / "align.old")
    stale = chain(IN_REACH, check=False)
    cluster.command("scancel", *jobs(stale).values())
    assert list(jobs(stale)) == ["align", "evaluate align"]
    assert stale.returncode == 2
    assert "init_from: another checkpoint of 'align' than there is now" in stale.stderr
    assert f"mv {run_dir / 'pretrain'}" in stale.stderr
