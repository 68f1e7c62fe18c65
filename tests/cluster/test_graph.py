"""What needs no Slurm: the graph of a chain, its commands as a shell runs them, gates on files."""

import json
import shutil
import subprocess
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from data_pipeline.errors import ConfigError, PreflightError, TransientError
from data_pipeline.manifest import write_json
from trainer.chain import SCRIPTS, Settings, jobs_of, script_of
from trainer.cli import main
from trainer.config import load_recipe
from trainer.engine.attempts import Attempt
from trainer.standing import code_of_lost_job, digest_of, is_evaluated, refuse_below_gate


def graph(recipe, settings):
    return {job.name: [n.name for n in job.needs] for job in jobs_of(recipe, settings)}


def test_a_stage_waits_for_the_stage_that_it_starts_from_and_for_that_ones_gate_where_it_has_one(tmp_path):
    words = ["stages.pretrain.gate={vqa.accuracy: 0.5}", "stages.adapt.init_from=pretrain"]
    recipe = load_recipe("tiny", words)
    assert graph(recipe, Settings(recipe="tiny", run=tmp_path)) == {
        "align": [],
        "evaluate align": ["align"],
        "pretrain": ["align"],
        "evaluate pretrain": ["pretrain"],
        "instruct": ["evaluate pretrain"],
        "evaluate instruct": ["instruct"],
        "adapt": ["evaluate pretrain"],
        "evaluate adapt": ["adapt"],
    }
    curated = graph(load_recipe("tiny"), Settings(recipe="tiny", run=tmp_path, data_recipe="demo"))
    assert next(iter(curated)) == "curate"
    assert (curated["align"], curated["pretrain"]) == (["curate"], ["align"])


def test_the_shown_commands_hand_each_job_the_numbers_of_those_it_waits_for(tmp_path):
    """Run by a shell, with an sbatch that counts and notes what it is given."""
    noting = tmp_path / "bin" / "sbatch"
    noting.parent.mkdir()
    noting.write_text(
        "#!/bin/bash\n"
        'echo "$STAGE $*" >>"$NOTES"\n'
        'wc -l <"$NOTES"\n'
    )  # fmt: skip
    noting.chmod(0o755)
    run = tmp_path / "a run"
    settings = Settings(recipe="tiny", run=run, overrides=("stages.align.gate={vqa.accuracy: 1}",), nodes=4)
    shown = "\n".join(script_of(jobs_of(load_recipe("tiny", [*settings.overrides]), settings), settings))
    notes = tmp_path / "notes"
    env = {"PATH": f"{noting.parent}:/usr/bin:/bin", "NOTES": str(notes)}
    subprocess.run(["bash", "-euc", shown], env=env, check=True)
    lines = notes.read_text().splitlines()
    assert len(lines) == 8
    waits = [next((w for w in line.split() if w.startswith("--dependency")), None) for line in lines]
    after = {n: f"--dependency=afterok:{n}" for n in range(1, 9)}
    assert waits == [None, after[1], after[2], after[3], after[3], after[5], after[5], after[7]]
    assert all("--kill-on-invalid-dep=yes" in line for line in lines[1:])
    assert ["--nodes=4" in line for line in lines] == [True, False] * 4
    assert all(line.endswith("stages.align.gate={vqa.accuracy: 1}") for line in lines)
    assert [line.split()[0] for line in lines if "eval.sh" in line] == [
        "align",
        "pretrain",
        "instruct",
        "adapt",
    ]
    assert all(f"--output={run}/jobs/%x-%j.out" in line for line in lines)


def test_names_of_jobs_differ_from_run_to_run_and_not_from_command_to_command(tmp_path, monkeypatch):
    def names(run):
        settings = Settings(recipe="tiny", run=run)
        return [settings.job_name(job) for job in jobs_of(load_recipe("tiny"), settings)]

    monkeypatch.chdir(tmp_path)
    assert len({*names(tmp_path / "a"), *names(tmp_path / "b")}) == 16
    assert names(tmp_path / "a") == names((tmp_path / "a").relative_to(tmp_path))


def test_a_recipe_of_more_stages_than_scripts_is_refused(tmp_path):
    recipe = load_recipe("tiny")
    more = recipe.model_copy(update={"stages": (*recipe.stages, recipe.stages[-1])})
    with pytest.raises(ConfigError, match=r"no stage5\.sh"):
        jobs_of(more, Settings(recipe="tiny", run=tmp_path))


def test_without_a_slurm_a_chain_is_refused_and_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["chain", "tiny", "--run", str(tmp_path)]) == 3
    said = capsys.readouterr().err
    assert "needs sbatch and squeue" in said
    assert "--dry-run" in said
    assert main(["chain", "tiny", "--run", str(tmp_path), "--dry-run"]) == 0
    assert "stage4.sh" in capsys.readouterr().out


@pytest.fixture
def finished(tmp_path):
    path = tmp_path / "align" / "checkpoints" / "step_000004"
    path.mkdir(parents=True)
    (path / "COMPLETE.json").write_text("{}")
    return SimpleNamespace(path=path, step=4)


def evaluated(run, digest, accuracy):
    results = run / "align" / "eval" / "step_000004" / "results.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps({"checkpoint": digest, "vqa": {"accuracy": accuracy}, "captions": None}))


def test_a_gate_fails_where_nothing_was_measured_and_where_another_checkpoint_was(tmp_path, finished):
    stage = load_recipe("tiny", ["stages.align.gate={vqa.accuracy: 0.5}"]).stage("align")
    with pytest.raises(
        PreflightError, match=r"vqa.accuracy: not measured[\s\S]*Evaluate it first:  fovea eval"
    ):
        refuse_below_gate(stage, tmp_path, finished)
    evaluated(tmp_path, "of another checkpoint", 0.9)
    assert not is_evaluated(stage, tmp_path, finished)
    with pytest.raises(PreflightError, match="not measured"):
        refuse_below_gate(stage, tmp_path, finished)
    evaluated(tmp_path, digest_of(finished), 0.4)
    assert is_evaluated(stage, tmp_path, finished)
    with pytest.raises(PreflightError, match=r"vqa.accuracy: 0.4, needs at least 0.5"):
        refuse_below_gate(stage, tmp_path, finished)
    evaluated(tmp_path, digest_of(finished), 0.5)
    assert refuse_below_gate(stage, tmp_path, finished) == {"vqa.accuracy": 0.5}


def test_an_evaluation_without_a_metric_of_the_gate_is_not_done(tmp_path, finished):
    stage = load_recipe("tiny", ["stages.align.gate={captions.CIDEr: 0.5}"]).stage("align")
    evaluated(tmp_path, digest_of(finished), 0.9)
    assert not is_evaluated(stage, tmp_path, finished)


def test_the_scripts_are_ones_that_shellcheck_has_nothing_against():
    scripts = sorted(SCRIPTS.glob("*.sh"))
    assert len(scripts) >= 9
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    found = subprocess.run(
        ["shellcheck", "-x", "-P", str(SCRIPTS.parent), *scripts], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout


def launched(container: str) -> list[str]:
    """What `fovea_ranks train mine` asks srun for, on nodes of eight cores and two ranks."""
    shown = 'source slurm/env.sh; srun() { printf "%s\\n" "$@"; }; fovea_ranks train mine'
    env = {"PATH": "/usr/bin:/bin", "SLURM_CPUS_ON_NODE": "8", "RANKS_PER_NODE": "2", "CONTAINER": container}
    done = subprocess.run(
        ["bash", "-euc", shown], cwd=SCRIPTS.parent, env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_one_variable_puts_every_fovea_into_a_container_and_srun_outside_of_it():
    plain = launched("")
    assert plain[-5:] == ["--ntasks-per-node=2", "--cpus-per-task=4", "fovea", "train", "mine"]
    assert "--kill-on-bad-exit=1" in plain
    inside = launched("images/fovea.sif")
    at = inside.index("apptainer")
    assert inside[:at] == plain[:-3]
    assert inside[-4:] == ["images/fovea.sif", "fovea", "train", "mine"]
    assert str(SCRIPTS.parent) in inside[inside.index("--bind") + 1].split(",")
    pyxis = launched("images/fovea.sqsh")
    home = SCRIPTS.parent
    assert f"--container-image={home}/images/fovea.sqsh" in pyxis
    assert f"--container-workdir={home}" in pyxis
    (mounts,) = (w.partition("=")[2].split(",") for w in pyxis if w.startswith("--container-mounts="))
    assert f"{home}:{home}" in mounts
    assert "--container-image=registry#fovea:1" in launched("registry#fovea:1")
    assert pyxis[-3:] == ["fovea", "train", "mine"]


@pytest.fixture
def attempted(tmp_path, monkeypatch):
    """Note an attempt of the second run of job 4712 that ended so; gives what the job is told."""

    def note(ended, *, job="4712", restart=1):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        write_json(tmp_path / "attempts" / "000003.json", asdict(replace(Attempt.here("r"), ended=ended)))
        monkeypatch.setenv("SLURM_JOB_ID", "4712")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        return code_of_lost_job(tmp_path)

    return note


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 75, 93, 143])
def test_of_a_job_that_lost_a_rank_the_main_rank_s_own_code_counts(attempted, code):
    assert attempted(code) == code


def test_a_main_rank_that_could_say_nothing_was_killed_and_the_job_may_try_again(attempted, tmp_path):
    with pytest.raises(TransientError, match="was killed"):
        attempted(None)
    assert Attempt.read(tmp_path / "attempts" / "000003.json").ended == 137


@pytest.mark.parametrize("other", [{"job": "4711"}, {"restart": 0}])
def test_a_job_whose_ranks_die_before_anybody_counts_them_is_not_queued_again(attempted, tmp_path, other):
    with pytest.raises(PreflightError, match="before they had begun"):
        attempted(None, **other)
    assert Attempt.read(tmp_path / "attempts" / "000003.json").ended is None
    (tmp_path / "attempts" / "000003.json").unlink()
    with pytest.raises(PreflightError, match="before they had begun"):
        code_of_lost_job(tmp_path)
