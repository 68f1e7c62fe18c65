"""`fovea status`: a run on one screen, whatever state it is in, from its directory alone."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

from data_pipeline.errors import PreflightError
from trainer.engine.attempts import Attempt
from trainer.observe.status import describe, status_of


def page(steps=12):
    return f"name: small\nstages:\n- {{name: align, steps: {steps}}}\n- {{name: instruct, steps: 4}}\n"


def begin(run, steps=12, **changes):
    """A run directory whose first stage was begun by this process; `changes` to its attempt."""
    (run / "align" / "attempts").mkdir(parents=True)
    (run / "recipe.resolved.yaml").write_text(page(steps))
    attempt = asdict(Attempt.here("r")) | changes
    (run / "align" / "attempts" / "000001.json").write_text(json.dumps(attempt))
    return run


def step_lines(run, steps, seconds=2.0):
    lines = [
        {"step": n, "loss": 1 / n, "tokens": 100, "step_s": seconds, "time": 1000 + seconds * n}
        for n in range(1, steps + 1)
    ]
    (run / "align" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_real_run_is_shown_with_its_stages_checkpoints_and_owner(trained, fovea):
    done = fovea("status", trained, "--json")
    assert done.returncode == 0, done.stderr
    align, instruct = json.loads(done.stdout)["stages"]
    assert (align["name"], align["state"], align["step"], align["steps"]) == ("align", "done", 12, 12)
    assert (instruct["state"], instruct["step"]) == ("done", 4)
    assert align["checkpoint"] == 12
    assert align["owner"]["ended"] == 0
    assert min(align["goodput"][part] for part in ("productive", "startup")) > 0
    assert align["tokens_per_s"] > 0
    shown = fovea("status", trained)
    assert shown.stdout.splitlines()[0].startswith("small")
    assert "12/12" in shown.stdout
    assert "step 12, complete" in shown.stdout


def test_it_needs_no_torch_and_little_more_of_a_core_than_its_libraries_take_to_load(trained):
    """Half a second of a core in all, on a machine where these libraries take a tenth."""

    def took(program):
        timed = f"import sys, time; began = time.process_time(); {program}; print(time.process_time() - began"
        command = [sys.executable, "-c", f"{timed}, 'torch' in sys.modules)", "status", str(trained)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        seconds, torch = said.splitlines()[-1].split()
        assert torch == "False"
        return float(seconds)

    whole, libraries = zip(
        *(
            (
                took("from trainer.cli import main; main(sys.argv[1:])"),
                took("import numpy, pyarrow, pydantic"),
            )
            for _ in range(3)
        ),
        strict=True,
    )
    assert min(whole) < 5 * min(libraries), (whole, libraries)


def test_a_directory_that_is_no_run_is_refused_with_what_is_expected(tmp_path, fovea):
    (tmp_path / "notes.txt").write_text("mine")
    for foreign in (tmp_path, tmp_path / "absent", tmp_path / "notes.txt"):
        done = fovea("status", foreign)
        assert done.returncode == PreflightError.exit_code
        assert "is no run directory" in done.stderr
        assert "Traceback" not in done.stderr


def state(run, **options):
    return status_of(run, **options).stages[0]


def test_the_state_follows_the_owner_and_the_newest_whole_checkpoint(tmp_path):
    assert state(begin(tmp_path / "starting")).state == "starting"

    run = begin(tmp_path / "running")
    step_lines(run, 5)
    running = state(run)
    assert (running.state, running.step) == ("running", 5)
    assert running.left_s == pytest.approx(7 * 2.0)
    assert running.tokens_per_s == pytest.approx(50)
    assert status_of(run).stages[1].state == "not begun"

    gone = begin(tmp_path / "gone", pid=2**22 + 1)
    step_lines(gone, 5)
    assert state(gone).state == "stopped"

    ended = begin(tmp_path / "ended", ended=143)
    assert state(ended).state == "stopped"

    elsewhere = begin(tmp_path / "elsewhere", place={"host": "node7", "boot": "b", "processes": "p"})
    step_lines(elsewhere, 5)
    assert state(elsewhere).state == "running"
    assert state(elsewhere, now=time.time() + 600).state == "silent"

    finished = begin(tmp_path / "finished", ended=0)
    (finished / "align" / "checkpoints" / "step_000012").mkdir(parents=True)
    assert state(finished).state == "stopped"  # without COMPLETE.json it is no checkpoint
    (finished / "align" / "checkpoints" / "step_000012" / "COMPLETE.json").write_text("{}")
    assert state(finished).state == "done"


def test_a_checkpoint_in_the_making_is_not_counted_and_age_is_of_the_newest_whole_one(tmp_path):
    run = begin(tmp_path)
    for name in ("step_000004", "step_000008", "step_000012.tmp"):
        path = run / "align" / "checkpoints" / name / "COMPLETE.json"
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        os.utime(path, (1000, 1000))
    found = state(run, now=1060.0)
    assert (found.checkpoint, found.checkpoint_age_s) == (8, 60)


def test_incident_and_evaluations_are_shown_and_control_characters_spelt_out(tmp_path):
    run = begin(tmp_path)
    event = {"event": "bad step", "step": 3, "reason": "the loss is nan \x1b]0;evil", "action": "skip"}
    (run / "align" / "events.jsonl").write_text(json.dumps(event) + '\n{"event": "torn')
    for n in (4, 12):
        (run / "align" / "eval" / f"step_{n:06d}").mkdir(parents=True)
        (run / "align" / "eval" / f"step_{n:06d}" / "results.json").write_text("{}")
    (run / "align" / "eval" / "step_000013").mkdir()
    screen = "\n".join(describe(status_of(run)))
    assert "step 3: bad step: the loss is nan \\x1b]0;evil; skip" in screen
    assert "steps 4, 12\n" in screen + "\n"
    assert "\x1b" not in screen


def test_the_death_of_a_rank_is_said_in_words(tmp_path):
    run = begin(tmp_path)
    event = {"event": "death", "rank": 1, "host": "node3", "phase": "backward", "module": "", "step": 7}
    (run / "align" / "events.jsonl").write_text(json.dumps(event | {"signal": "SIGKILL"}) + "\n")
    assert state(run).incident == "step 7: death: rank 1 on node3, backward, SIGKILL"


def test_torn_and_foreign_files_of_a_run_raise_nothing(tmp_path):
    run = begin(tmp_path)
    for name in ("metrics.jsonl", "timeline.jsonl", "events.jsonl", "attempts/000002.json"):
        (run / "align" / name).write_bytes(b'{"step": 3, "loss": \xff\n[1]\n{"step": "x"}\n{"eve')
    (run / "recipe.resolved.yaml").write_text("stages: [3, {name: [")
    assert [s.name for s in status_of(run).stages] == ["align"]
    assert list(describe(status_of(run)))
