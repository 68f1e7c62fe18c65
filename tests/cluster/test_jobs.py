"""`sbatch slurm/stageN.sh` on a real Slurm: what the scheduler and the run directory hold afterwards."""

import json
import re
import signal
import subprocess
import time
from dataclasses import asdict, replace

import psutil
import pytest

from data_pipeline.manifest import write_json
from trainer.engine.attempts import Attempt
from trainer.engine.place import Place
from waiting import wait_for

EXACT = ("step", "loss", "lr", "grad_norm", "tokens", "target_tokens", "images", "samples", "window", "row")


def metrics(run, stage):
    lines = (run / stage / "metrics.jsonl").read_text().splitlines()
    return [{k: json.loads(line)[k] for k in EXACT} for line in lines]


def attempts(run, stage):
    files = sorted((run / stage / "attempts").glob("[0-9]*.json"))
    return [json.loads(f.read_text()) for f in files]


def stopped(run):
    """Ranks of the run that a signal has stopped."""
    found = psutil.process_iter(["cmdline", "status"])
    return [
        p
        for p in found
        if p.info["status"] == psutil.STATUS_STOPPED and str(run) in (p.info["cmdline"] or ())
    ]


def apptainer(tmp_path):
    """An environment with a stand-in for it, which notes node and verb of what it is given, and does that."""
    (tmp_path / "bin").mkdir()
    stand_in = tmp_path / "bin" / "apptainer"
    stand_in.write_text(
        f"""#!/usr/bin/env bash
set -eu
until [[ $1 == *.sif ]]; do shift; done
[[ $2 == fovea ]]
echo "$(hostname) $3" >>{tmp_path}/apptainer.log
exec "${{@:2}}"
"""
    )
    stand_in.chmod(0o755)
    return tmp_path


@pytest.fixture
def env(run_dir):
    return {"RECIPE": run_dir / "recipe.yaml", "RUN": run_dir}


def test_stage_3_without_stage_2_ends_with_3_in_seconds_and_names_the_command(cluster, run_dir, env):
    job = cluster.submit("stage3.sh", **env)
    shown = cluster.wait(job)
    assert (shown["JobState"], shown["ExitCode"]) == ("FAILED", "3:0")
    assert "the weights of stage 'pretrain' are needed, and it has no checkpoint" in cluster.output(job)
    assert "sbatch slurm/stage2.sh" in cluster.output(job)
    assert "--stage pretrain" in cluster.output(job)
    assert not (run_dir / "instruct").exists()  # no rank was started


def test_a_job_told_that_its_time_is_up_saves_is_queued_again_and_trains_as_if_nothing_had_been(
    cluster, run_dir, env, unbroken
):
    """On the GPUs of one node, two ranks. A second job on the same stage meanwhile is refused with 3."""
    env |= {"RANKS_PER_NODE": "", "SBATCH_GPUS_PER_NODE": "2", "TRAIN_OPTIONS": "--faults stop:1@5"}
    first = cluster.submit("stage1.sh", options=("--nodes=1",), **env)
    cluster.said(first, "align  step 1/8")
    second = cluster.submit("stage1.sh", options=("--nodes=1",), **env)
    shown = cluster.wait(second)
    assert (shown["JobState"], shown["ExitCode"]) == ("FAILED", "3:0")
    assert f"{run_dir / 'align'} is in use by job {first}, process " in cluster.output(second)

    # A chain takes the job that trains the stage, whatever its name, for its own.
    said = cluster.command("fovea", "chain", env["RECIPE"], "--run", run_dir, OMP_NUM_THREADS=1).stdout
    assert re.search(rf"^align +job {first} is there$", said, re.MULTILINE)
    others = re.findall(r"job (\d+) submitted(.*)", said)
    assert (len(others), others[1][1]) == (7, f", after {first}")
    cluster.command("scancel", *(number for number, _ in others))

    cluster.command("scancel", "--signal=USR1", first)
    cluster.command("scancel", "--signal=CONT", first)
    cluster.said(first, "code 75")
    shown = cluster.wait(first)
    assert (shown["JobState"], shown["ExitCode"], shown["Restarts"]) == ("COMPLETED", "0:0", "1")
    said = cluster.output(first)
    assert "stage 'align' stopped after step 5 of 8, which is saved, asked by SIGUSR1" in said
    assert "align: resuming after step 5" in said
    assert [(a["job"], a["requeued"], a["ended"]) for a in attempts(run_dir, "align")] == [
        (first, 0, 75),
        (first, 1, 0),
    ]
    assert metrics(run_dir, "align") == metrics(unbroken, "align")


def test_a_job_whose_main_rank_is_killed_each_time_is_queued_again_until_that_leads_nowhere(
    cluster, run_dir, env
):
    """Each start counts, though nobody of it could say how it ended."""
    job = cluster.submit("stage1.sh", TRAIN_OPTIONS="--faults kill:0@1", **env)
    waits = (f"--dependency=afterok:{job}", "--kill-on-invalid-dep=yes")
    waiting = cluster.submit("stage2.sh", options=waits, **env)
    shown = cluster.wait(job, seconds=600)
    assert (shown["JobState"], shown["ExitCode"], shown["Restarts"]) == ("FAILED", "93:0", "3")
    assert [(a["job"], a["requeued"], a["saved"], a["ended"]) for a in attempts(run_dir, "align")] == [
        (job, restart, None, 137) for restart in range(3)
    ]
    said = cluster.output(job)
    assert said.count(f"the main rank of {run_dir / 'align'} was killed.") == 3
    assert "the last 3 attempts" in said
    assert cluster.wait(waiting)["JobState"] == "CANCELLED"


def test_an_owner_that_could_not_say_how_it_ended_holds_its_stage_as_long_as_slurm_knows_its_job(
    cluster, run_dir, env
):
    sleeps = ("--output=/dev/null", "--wrap=sleep 3600")
    job = cluster.command("sbatch", "--parsable", *sleeps).stdout.strip()
    elsewhere = replace(Attempt.here(recipe="", place=replace(Place.here(), host="node17")), job=job)
    write_json(run_dir / "align" / "attempts" / "000001.json", asdict(elsewhere))
    gate = ("fovea", "gate", env["RECIPE"], "--run", run_dir, "--before", "align", "--nproc", 2)
    refused = cluster.command(*gate, check=False)
    assert refused.returncode == 3
    assert f"is in use by job {job}, process " in refused.stderr
    cluster.command("scancel", job)
    cluster.wait(job, "CANCELLED")
    wait_for(lambda: not cluster.command("squeue", "--noheader", f"--jobs={job}").stdout)
    assert "align: may begin" in cluster.command(*gate).stdout
    assert [a["ended"] for a in attempts(run_dir, "align")] == [137]


def test_a_node_that_dies_is_replaced_and_a_rank_that_is_killed_then_loses_nothing_either(
    cluster, run_dir, env, unbroken
):
    # Saved at once: the rank stops before the step in which a save beside the training would be noted.
    at_once = "stages.align.checkpoint_async=false"
    job = cluster.submit("stage1.sh", at_once, TRAIN_OPTIONS="--faults stop:1@5", **env)
    cluster.said(job, "align  step 1/8")
    wait_for(lambda: attempts(run_dir, "align")[0]["saved"] == 4)
    nodes = cluster.job(job)["NodeList"]
    last = cluster.command("scontrol", "show", "hostnames", nodes).stdout.split()[-1]
    cluster.node("kill", last)
    try:
        cluster.wait(job, "PENDING", "REQUEUED", seconds=120)
        (rank,) = wait_for(lambda: stopped(run_dir), 240)  # the fault strikes in that step again
        rank.kill()
        cluster.said(job, "is queued again")
        while (state := cluster.job(job)["JobState"]) != "COMPLETED":
            assert state in ("PENDING", "REQUEUED", "RUNNING", "CONFIGURING", "COMPLETING"), cluster.output(
                job
            )
            cluster.command("scancel", "--signal=CONT", job, check=False)  # and again
            time.sleep(1)
        shown = cluster.job(job)
        assert (shown["Restarts"], shown["NumNodes"]) == ("2", "2")
        assert shown["NodeList"] != nodes
    finally:
        cluster.command("scancel", job, check=False)
        cluster.node("start", last)
    assert cluster.output(job).count("align: resuming after step 4") == 2
    (*lost, last) = attempts(run_dir, "align")
    assert [a["requeued"] for a in (*lost, last)] == [0, 1, 2]
    assert {a["ended"] for a in lost} <= {
        75,
        137,
    }  # whether or not srun left the main rank the time to say so
    assert last["ended"] == 0
    assert metrics(run_dir, "align") == metrics(unbroken, "align")


def test_a_job_requeued_by_hand_then_cancelled_loses_nothing_though_the_scratch_disk_is_full(
    cluster, run_dir, env, unbroken, tmp_path
):
    """A rank that stops itself holds the run at steps 3 and 5; woken, it finds what Slurm has sent it. The
    last job runs in a container."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", scratch]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("no right to mount a file system")
    env |= {"SCRATCH": scratch}
    try:
        with pytest.raises(OSError, match="No space left"):
            (scratch / "left behind").write_bytes(bytes(2**17))
        job = cluster.submit("stage1.sh", TRAIN_OPTIONS="--faults stop:1@3,stop:1@5", **env)
        cluster.said(job, "align  step 1/8")
        (rank,) = wait_for(lambda: stopped(run_dir))
        cluster.command("scontrol", "requeue", job)
        rank.send_signal(signal.SIGCONT)
        cluster.said(job, "align: resuming after step 3")
        (rank,) = wait_for(lambda: stopped(run_dir))
        cluster.command("scancel", job)
        rank.send_signal(signal.SIGCONT)
        assert cluster.wait(job)["JobState"] == "CANCELLED"
        again = cluster.submit("stage1.sh", **env, CONTAINER="fovea.sif", VENV=apptainer(tmp_path))
        assert cluster.wait(again)["JobState"] == "COMPLETED", cluster.output(again)
    finally:
        subprocess.run(["umount", scratch], check=True)
    inside = sorted((tmp_path / "apptainer.log").read_text().splitlines())
    assert [re.sub(r"^n\d ", "", line) for line in inside] == ["gate", "train", "train"]
    assert len(set(inside)) == 3  # on two nodes
    assert "align: resuming after step 5" in cluster.output(again)
    assert [(a["job"], a["ended"]) for a in attempts(run_dir, "align")] == [
        (job, 143),
        (job, 143),
        (again, 0),
    ]
    assert metrics(run_dir, "align") == metrics(unbroken, "align")
