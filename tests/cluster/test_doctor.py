"""`srun fovea doctor` on a real Slurm: all nodes of a job, one that is missing, what the job would lose."""

import json
import re

SCRIPT = """#!/usr/bin/env bash
#SBATCH --no-requeue --nodelist=n1,n2 --ntasks-per-node=1 --time=00:05:00
srun fovea doctor --run "$RUN" --json >report.json
"""


def test_under_srun_each_node_is_examined_and_one_table_names_both(cluster, tmp_path):
    (tmp_path / "slurm").mkdir()
    done = cluster.command(
        "srun", "--nodelist=n1,n2", "--ntasks-per-node=1", "--time=5", "fovea", "doctor", "--run", tmp_path,
        check=False, cwd=tmp_path, OMP_NUM_THREADS=1,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode in (0, 1), done.stdout + done.stderr
    rows = {line[:17].strip(): line for line in lines if not line.startswith(" ")}
    assert re.search(r"ranks +n1, n2 +ok +all 2 came", rows["ranks"])
    for name in (
        "all-reduce",
        "links between nodes",
        "clocks",
        "names",
        "same everywhere",
        "rename",
        "one owner",
    ):
        assert re.search(rf"^{name} +n1, n2 +ok ", rows[name[:17].strip()]), done.stdout
    for name in ("shared directory", "python", "scratch"):
        assert "n1, n2" in rows[name], done.stdout
    assert re.search(r"[45] minutes of this job, of 00:05:00", rows["time left"])
    assert re.search(r"^2 ranks on 2 nodes in [\d.]+ s: ", lines[-1])
    assert not list(tmp_path.glob(".doctor-*"))


def test_a_node_that_sends_no_rank_is_named(cluster, tmp_path):
    late = f'[[ $SLURM_PROCID == 0 ]] || exec sleep 60; exec fovea doctor --run "{tmp_path}" --seconds 6'
    done = cluster.command(
        "srun", "--nodelist=n1,n2", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "bash", "-c", late,
        check=False, cwd=tmp_path, OMP_NUM_THREADS=1,
    )  # fmt: skip
    said = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert re.search(r"ranks n2 fail 1 of 2 came within 3 s; missing: rank 1; no rank came from n2", said), (
        said
    )


def test_a_job_that_may_not_be_queued_again_is_warned_of_by_its_own_script(cluster, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text(SCRIPT)
    sent = cluster.command(
        "sbatch",
        "--parsable",
        f"--output={tmp_path}/out",
        script,
        cwd=tmp_path,
        RUN=tmp_path,
        OMP_NUM_THREADS=1,
    )
    job = sent.stdout.strip()
    shown = cluster.wait(job)
    page = json.loads((tmp_path / "report.json").read_text())
    assert (page["exit_code"], shown["ExitCode"]) == (1, "1:0")
    assert page["hosts"] == ["n1", "n2"]
    said = [r["said"] for r in page["rows"] if r["name"] == "job scripts"]
    assert f"job {job} may not be queued again" in said[0]
    assert f"job {job} asks for no signal" in said[1]
    waits = [r["said"] for r in page["rows"] if r["name"] == "kill wait"]
    assert waits == ["3 s between SIGTERM and SIGKILL; no save measured yet"]  # as the rig sets it
