"""Progress is that of the records on disk, on a terminal and in a log."""

import io

from rich.console import Console

from data_pipeline.build.progress import Progress
from data_pipeline.build.run import build
from data_pipeline.manifest import task_record_path


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def log() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=False, width=40), out


def test_lines_say_tasks_samples_and_the_time_that_is_left(inputs, tmp_path):
    made = build(inputs, tmp_path, bad_inputs="drop", overrides=["tasks=4"])
    records = {t: task_record_path(tmp_path, t).read_text() for t in range(4)}
    counts = [sum(f.written for f in t.funnel.values()) for t in made.tasks]
    for t in range(4):
        task_record_path(tmp_path, t).unlink()
    console, out = log()
    clock = Clock()
    with Progress(tmp_path, made.fingerprint, console, clock) as progress:
        progress.update(0, 4)
        for done in range(1, 5):
            task_record_path(tmp_path, done - 1).write_text(records[done - 1])
            clock.now += 60
            progress.update(done, 4)
    lines = out.getvalue().splitlines()
    assert lines[0] == "0 of 4 tasks done, 0 samples so far, time left not known yet"
    assert lines[1] == f"1 of 4 tasks done, {counts[0]} samples so far, about 3 min 00 s left"
    assert lines[3] == f"3 of 4 tasks done, {sum(counts[:3])} samples so far, about 1 min 00 s left"
    assert lines[4] == f"4 of 4 tasks done, {sum(counts)} samples so far"
    assert len(lines) == 5


def test_a_log_is_not_flooded_and_its_last_line_is_never_missing(tmp_path):
    console, out = log()
    clock = Clock()
    with Progress(tmp_path, "f", console, clock) as progress:
        for done in range(1001):
            clock.now += 0.1
            progress.update(done, 1000)
    lines = out.getvalue().splitlines()
    assert 10 <= len(lines) <= 13
    assert lines[-1].startswith("1000 of 1000 tasks done")


def test_records_of_another_build_and_damaged_ones_are_not_counted(inputs, tmp_path):
    made = build(inputs, tmp_path, bad_inputs="drop", overrides=["tasks=2"])
    written = sum(f.written for f in made.tasks[1].funnel.values())
    task_record_path(tmp_path, 0).write_text("{")
    for fingerprint, expected in ((made.fingerprint, written), ("another", 0)):
        console, out = log()
        with Progress(tmp_path, fingerprint, console) as progress:
            progress.update(2, 2)
        assert out.getvalue() == f"2 of 2 tasks done, {expected} samples so far\n"


def test_the_rate_is_that_of_this_run_not_of_tasks_that_were_done_before(tmp_path):
    console, _ = log()
    clock = Clock()
    with Progress(tmp_path, "f", console, clock) as progress:
        progress.update(90, 100)
        assert progress.left_s(90, 100) is None
        clock.now = 50.0
        progress.update(95, 100)
        assert progress.left_s(95, 100) == 50.0


def test_on_a_terminal_there_is_one_bar_and_no_lines(tmp_path):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with Progress(tmp_path, "f", console) as progress:
        for done in range(3):
            progress.update(done, 2)
    text = out.getvalue()
    assert "tasks done," not in text
    assert "2/2" in text
    assert "0 samples so far" in text


def test_a_build_reports_its_tasks_to_the_end(inputs, tmp_path):
    console, out = log()
    made = build(inputs, tmp_path, bad_inputs="drop", overrides=["tasks=3"], console=console)
    written = sum(f.written for f in made.funnel.values())
    assert out.getvalue().splitlines()[-1] == f"3 of 3 tasks done, {written:,} samples so far"
