"""Where the wall time of a stage went: every second in one part, by timelines with known answers."""

import json
import os
from dataclasses import asdict

import pytest

from trainer.observe.goodput import Goodput, goodput_of
from trainer.observe.sinks import JsonlSink
from trainer.observe.stage_files import attempts_of, read_lines, steps_of


def step(number, at, seconds=10, **more):
    """A line of metrics.jsonl: the step took `seconds`, until `at`."""
    return {"step": number, "time": at, "step_s": seconds, **more}


def write(stage_dir, timeline, steps, attempt, alive_at):
    (stage_dir / "attempts").mkdir(parents=True)
    for name, lines in (("timeline", timeline), ("metrics", steps)):
        (stage_dir / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = stage_dir / "attempts" / "000002.json"
    path.write_text(json.dumps(attempt))
    os.utime(path, (alive_at, alive_at))


def split(stage_dir):
    return goodput_of(stage_dir, steps_of(read_lines(stage_dir / "metrics.jsonl")))


def start(at, began, before=None, step=0):
    return {"event": "start", "time": at, "began": began, "pid": 1, "step": step, "before": before}


def lost(since, until):
    return {"event": "lost", "time": until, "after": 2, "steps": 1, "since": since, "until": until}


def test_each_second_of_a_killed_and_resumed_stage_is_counted_once(tmp_path):
    # 0-20 start-up; 20-30, 30-40 steps 1, 2 (3 s waiting for data); 40-45 a save; 45-55 step 3, lost;
    # 55-62 step 4, cut short; dead until 100; resumed, 130-140 step 3; 140-150 step 4, refused by the guard;
    # 150-160 step 5; 160-166 the last save; 166-168 the end.
    killed = {"alive_at": 62, "ended": None, "saved": 2, "save_s": 5}
    write(
        tmp_path,
        [start(15, 0), lost(45, 62), start(125, 100, killed, 2)],
        [
            step(1, 30),
            step(2, 40, data_wait_s=3),
            step(3, 140, checkpoint_stall_s=0.0),
            step(4, 150, guard="skip"),
            step(5, 160),
        ],
        {"ended": 0, "saved": 5, "save_s": 6},
        168,
    )
    found = split(tmp_path)
    assert asdict(found) == pytest.approx(
        {
            "productive": 10 + 7 + 10 + 10,
            "data": 3,
            "checkpoint": 5 + 6,
            "evaluation": 0,
            "startup": 20,
            "restart": 130 - 62,
            "wasted": (62 - 45) + 10,
            "other": 2,
        }
    )
    assert found.wall == pytest.approx(168)
    assert found.share == pytest.approx(37 / 168)


def test_a_step_cut_short_by_a_kill_is_wasted_and_a_clean_end_is_not(tmp_path):
    steps = [step(1, 20), step(2, 30)]
    for code, saved, wasted, other in ((None, 1, 9, 0), (1, 1, 9, 0), (143, 2, 0, 5)):
        stage = tmp_path / str(code)
        write(stage, [start(5, 0)], steps, {"ended": code, "saved": saved, "save_s": 4}, 39)
        found = split(stage)
        assert (found.wasted, found.other) == pytest.approx((wasted, other)), code
        assert found.wall == pytest.approx(39)


def test_attempts_that_came_to_no_step_are_part_of_the_restart(tmp_path):
    killed = {"alive_at": 25, "ended": 1, "saved": None, "save_s": None}
    timeline = [start(5, 0), start(45, 40, killed), start(85, 80, killed)]
    write(tmp_path, timeline, [step(1, 20), step(2, 110)], {"ended": None}, 110)
    assert (split(tmp_path).restart, split(tmp_path).wasted) == (75, 5)


def test_a_finished_stage_that_is_called_again_the_next_day_lost_no_day(tmp_path):
    done = {"alive_at": 24, "ended": 0, "saved": 1, "save_s": 3}
    write(tmp_path, [start(5, 0), start(90_000, 89_990, done, 1)], [step(1, 20)], {"ended": 0}, 90_001)
    assert split(tmp_path).wall == 24
    assert split(tmp_path).restart == 0


def test_of_a_long_run_the_steps_that_were_read_are_counted(tmp_path):
    write(tmp_path, [start(5, 0)], [step(1, 20), step(2, 30), step(3, 40)], {"ended": None}, 40)
    late = goodput_of(tmp_path, steps_of(read_lines(tmp_path / "metrics.jsonl"))[1:])
    assert late == Goodput(productive=20)


def test_a_stage_without_a_timeline_has_no_goodput(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(step(1, 20)) + "\n")
    assert split(tmp_path) is None


def test_what_is_cut_off_the_metrics_stays_in_the_timeline(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    first = JsonlSink(metrics, resume_step=0)
    for n in range(1, 6):
        first.write(step(n, 100 + 10 * n))
    first.rewind(3, {"ledger": 0, "window": 7, "row": 2})
    first.write(step(4, 1000))
    first.close()
    JsonlSink(metrics, resume_step=2).close()
    assert [line["step"] for line in read_lines(metrics)] == [1, 2]
    by_rewind, by_resume = (t for t in read_lines(tmp_path / "timeline.jsonl") if t["event"] == "lost")
    assert (by_rewind["after"], by_rewind["steps"], by_rewind["since"]) == (3, 3, 130)  # 4, 5, the bad one
    assert (by_resume["after"], by_resume["steps"]) == (2, 2)
    assert (by_resume["since"], by_resume["until"]) == (120, 1000)


def test_of_a_real_stage_the_parts_are_what_its_lines_and_its_attempt_say(trained):
    stage = trained / "align"
    lines = read_lines(stage / "metrics.jsonl")
    first = read_lines(stage / "timeline.jsonl")[0]
    found = goodput_of(stage, lines)
    waited = sum(line.get("data_wait_s", 0.0) for line in lines)
    assert found.productive + found.data == pytest.approx(sum(line["step_s"] for line in lines), rel=0.02)
    assert found.data <= waited + 1e-9
    assert found.startup == pytest.approx(lines[0]["time"] - lines[0]["step_s"] - first["began"], abs=0.01)
    assert found.checkpoint > 0
    assert found.restart == found.wasted == 0
    if len(attempts_of(stage)) == 1:
        assert found.wall == pytest.approx(attempts_of(stage)[0].alive_at - first["began"], abs=0.05)


def evaluation(since, until):
    return {"event": "evaluation", "time": until, "step": 2, "since": since, "until": until}


def test_evaluations_between_steps_are_a_part_of_their_own(tmp_path):
    # 0-20 start-up; 20-30 step 1; 30-40 step 2; 40-45 its save; 45-60 evaluated until it was asked to stop;
    # 60-61 the end; resumed, 90-100 the rest of the evaluation; 100-101 data; 101-111 step 3; 111-114 the
    # last save; 114-120 evaluated; 120-121 the end.
    stopped = {"alive_at": 61, "ended": 143, "saved": 2, "save_s": 5}
    write(
        tmp_path,
        [
            start(15, 0),
            evaluation(45, 60),
            start(85, 80, stopped, 2),
            evaluation(90, 100),
            evaluation(114, 120),
        ],
        [step(1, 30), step(2, 40), step(3, 111, checkpoint_stall_s=0.0)],
        {"ended": 0, "saved": 3, "save_s": 3},
        121,
    )
    found = split(tmp_path)
    assert asdict(found) == pytest.approx(
        {
            "productive": 30,
            "data": 0,
            "checkpoint": 5 + 3,
            "evaluation": 15 + 10 + 6,
            "startup": 20,
            "restart": 90 - 61,
            "wasted": 0,
            "other": 1 + 1 + 1,
        }
    )
    assert found.wall == pytest.approx(121)


def test_an_evaluation_that_was_killed_is_wasted(tmp_path):
    write(tmp_path, [start(0, 0)], [step(1, 10)], {"ended": None, "saved": 1, "save_s": 2}, 20)
    found = split(tmp_path)
    assert (found.checkpoint, found.wasted) == pytest.approx((2, 8))
