"""Bad steps of a real stage on two ranks: skipped, rewound or stopped at, and written down."""

import json
import math
import shutil

import lxml.html
import pytest

from trainer.engine import checkpoint

SERIES = ("step", "loss", "lr", "grad_norm", "tokens", "samples", "window", "row")


@pytest.fixture
def train(run_dir, fovea):
    def run(*words, code=0):
        done = fovea(
            "train", run_dir / "recipe.yaml", "--stage", "align", "--run", run_dir, "--nproc", 2, *words
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    return run


def series(lines):
    return [{key: line[key] for key in SERIES} for line in lines]


def incident(run_dir, step):
    directory = run_dir / "align" / "incidents" / f"step_{step:06d}"
    page = (directory / "rows.html").read_text()
    return json.loads((directory / "incident.json").read_text()), page


def test_a_skipped_step_changes_no_weight_and_is_written_down_with_its_samples(
    run_dir, train, metrics, trained
):
    faults = ("--faults", "nan:1@3,nan:0@6")
    train(*faults)
    lines = metrics(run_dir / "align")
    unbroken = metrics(trained / "align")
    assert [line.get("guard") for line in lines] == [None, None, "skip", None, None, "skip"] + [None] * 6
    assert [line["samples"] for line in lines] == [line["samples"] for line in unbroken]
    # The step's own loss is from before its update; its gradient is what was bad, and never got in.
    assert series(lines)[:2] == series(unbroken)[:2]
    assert lines[2]["loss"] == unbroken[2]["loss"]
    assert lines[2]["grad_norm"] is None
    assert all(math.isfinite(line["loss"]) for line in lines)

    about, page = incident(run_dir, 3)
    assert (about["reason"], about["action"], about["value"]) == ("the gradient norm is inf", "skip", "inf")
    assert {"connector"} <= set(about["grad_norm_by_module"])
    assert about["samples"]
    assert all(s["id"] and s["source"] for s in about["samples"])
    assert {s["rank"] for s in about["samples"]} == {0, 1}
    assert all(s["id"] in page for s in about["samples"])
    assert "data:image/" in page
    decoded = "".join(lxml.html.document_fromstring(page).xpath("//p[@class='chips']//text()"))
    assert "caption: a" in decoded
    events = [json.loads(line) for line in (run_dir / "align" / "events.jsonl").read_text().splitlines()]
    assert [(e["event"], e["step"]) for e in events] == [("bad step", 3), ("bad step", 6)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_with_bad_steps_that_is_stopped_and_resumed_is_the_unbroken_one(
    prepared, run_dir, train, metrics, fovea
):
    policy = ("stages.align.guard.spike_z=1000", "stages.align.guard.window=4")
    faults = "spike:1@6,nan:0@7,spike:1@9"
    train(*policy, "--faults", faults)
    unbroken = metrics(run_dir / "align")
    assert [line["step"] for line in unbroken if line.get("guard")] == [6, 7, 9]
    broken = run_dir.parent / "broken"
    shutil.copytree(prepared, broken)
    command = ("train", broken / "recipe.yaml", "--stage", "align", "--run", broken, "--nproc", 2, *policy)
    for step, code in ((5, 143), (7, 143)):
        assert fovea(*command, "--faults", f"{faults},term:0@{step}").returncode == code
    assert fovea(*command, "--faults", faults).returncode == 0
    assert series(metrics(broken / "align")) == series(unbroken)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_ladder_ends_with_code_5_names_the_incident_and_saves_nothing_amid_bad_steps(run_dir, train):
    done = train(
        "stages.align.guard.ladder=[skip, skip, stop]", "--faults", "nan:1@3,nan:1@4,nan:1@5", code=5
    )
    assert str(run_dir / "align" / "incidents" / "step_000005") in done.stderr
    assert "the gradient norm is inf" in done.stderr
    assert incident(run_dir, 5)[0]["action"] == "stop"
    assert checkpoint.newest(run_dir / "align") == (None, [])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_window_of_data_is_passed_over_also_by_a_run_that_is_resumed_there(
    prepared, run_dir, train, metrics, trained, fovea
):
    policy = ("stages.align.guard.ladder=[skip, skip_window, stop]", "stages.align.guard.skip_window=3")
    train(*policy, "--faults", "nan:1@3,nan:0@4")
    lines, unbroken = metrics(run_dir / "align"), metrics(trained / "align")
    assert [line.get("guard") for line in lines] == [None, None, "skip", "skip_window"] + [None] * 8
    assert [line["samples"] for line in lines[:4]] == [line["samples"] for line in unbroken[:4]]
    # Three steps of data are nobody's: step 5 got what step 8 of the unbroken run has.
    assert [line["samples"] for line in lines[4:9]] == [line["samples"] for line in unbroken[7:]]
    assert [line["lr"] for line in lines] == [line["lr"] for line in unbroken]
    command = ("data", "explain", run_dir / "recipe.resolved.yaml", "--run", run_dir, "--stage", "align")
    explained = fovea(*command, "--step", 5, "--nproc", 2)
    assert "as the run recorded" in explained.stdout, (explained.stdout, explained.stderr)
    broken = run_dir.parent / "broken"
    shutil.copytree(prepared, broken)
    again = ("train", broken / "recipe.yaml", "--stage", "align", "--run", broken, "--nproc", 2, *policy)
    assert fovea(*again, "--faults", "nan:1@3,nan:0@4,term:0@4").returncode == 143
    assert fovea(*again).returncode == 0
    assert series(metrics(broken / "align")) == series(lines)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_rewound_run_goes_on_from_the_checkpoint_with_the_data_past_the_bad_rows(
    run_dir, train, metrics, trained, fovea
):
    # The fault comes again with its step, so the second rung skips it.
    train("stages.align.guard.ladder=[rewind, skip, stop]", "--faults", "nan:1@6")
    lines, unbroken = metrics(run_dir / "align"), metrics(trained / "align")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["samples"] for line in lines[:4]] == [line["samples"] for line in unbroken[:4]]
    # Steps 5 and 6 were drawn and given up: step 5 got what step 7 of the unbroken run has.
    assert [line["samples"] for line in lines[4:10]] == [line["samples"] for line in unbroken[6:]]
    assert [line["lr"] for line in lines] == [line["lr"] for line in unbroken]
    assert [line.get("guard") for line in lines] == [None] * 5 + ["skip"] + [None] * 6
    explained = fovea(
        "data",
        "explain",
        run_dir / "recipe.resolved.yaml",
        "--run",
        run_dir,
        "--stage",
        "align",
        "--step",
        5,
        "--nproc",
        2,
    )
    assert "as the run recorded" in explained.stdout, (explained.stdout, explained.stderr)
    events = [json.loads(line) for line in (run_dir / "align" / "events.jsonl").read_text().splitlines()]
    assert [(e["step"], e["action"]) for e in events] == [(6, "rewind"), (6, "skip")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_incident_that_cannot_be_written_does_not_end_the_run(run_dir, train, metrics):
    (run_dir / "align").mkdir()
    (run_dir / "align" / "incidents").write_text("a file where the directory should be")
    done = train("--faults", "nan:1@3", "stages.align.steps=4")
    assert "is not complete" in done.stderr
    assert [line.get("guard") for line in metrics(run_dir / "align")] == [None, None, "skip", None]
