"""`fovea train --profile`: a Chrome trace of the steps that were asked for, on the main rank."""

import json
from types import SimpleNamespace

import pytest
import torch

from data_pipeline.errors import ConfigError
from trainer.cli_observe import refuse_profile
from trainer.observe.profile import ProfileWindow


def named(path):
    return {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}


def steps(window, first, last):
    """Steps that each mark their own range."""
    for n in range(first, last + 1):
        with torch.profiler.record_function(f"step-{n}"):
            torch.ones(3).sum()
        window.write({"step": n})


def test_the_trace_holds_the_steps_of_the_window_and_no_others(tmp_path):
    steps(ProfileWindow(2, 3, 0, tmp_path), 1, 5)
    found = named(tmp_path / "steps_2_3.json")
    assert {f"step-{n}" for n in range(1, 6)} & found == {"step-2", "step-3"}
    assert "aten::sum" in found


def test_a_window_that_a_resume_falls_into_is_traced_from_there(tmp_path):
    steps(ProfileWindow(2, 5, 3, tmp_path), 4, 6)
    assert {"step-4", "step-5"} <= named(tmp_path / "steps_2_5.json")
    steps(ProfileWindow(2, 3, 5, tmp_path), 6, 7)
    assert not (tmp_path / "steps_2_3.json").exists()


def test_a_run_that_stops_within_the_window_writes_what_there_is(tmp_path):
    window = ProfileWindow(1, 9, 0, tmp_path)
    steps(window, 1, 2)
    window.close()
    assert {"step-1", "step-2"} <= named(tmp_path / "steps_1_9.json")


def test_a_window_without_steps_is_refused():
    stage = SimpleNamespace(name="align", steps=12)
    refuse_profile((1, 12), stage)
    for window in ((0, 3), (4, 3), (10, 13)):
        with pytest.raises(ConfigError, match="from 1 to 12"):
            refuse_profile(window, stage)


@pytest.mark.slow
def test_a_real_run_leaves_a_trace_of_its_forward_passes(run_dir, fovea):
    command = ("train", run_dir / "recipe.yaml", "--stage", "align", "--run", run_dir, "--nproc", 2)
    done = fovea(*command, "--profile", "3:4", "stages.align.steps=5")
    assert done.returncode == 0, done.stderr
    assert [p.name for p in (run_dir / "align" / "profile").iterdir()] == ["steps_3_4.json"]
    assert "aten::mm" in named(run_dir / "align" / "profile" / "steps_3_4.json")
    refused = fovea(*command, "--profile", "3")
    assert refused.returncode == 2
    assert "FIRST:LAST" in refused.stderr
