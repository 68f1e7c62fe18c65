"""Requests to stop: who sees them, which one counts, and when there is still time."""

import importlib
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from data_pipeline.errors import ConfigError, PreemptedError, PreflightError, TransientError
from trainer.engine import requests
from trainer.engine.faults import Fault, parse_faults, strike, strike_save
from trainer.engine.requests import (
    REASONS,
    Requests,
    Stopped,
    deadline_of,
    decide,
    parse_limit,
    refuse_stop_file,
)
from trainer.signals import abandoning
from waiting import wait_for


@pytest.fixture
def listening():
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    request = Requests()
    request.listen()
    yield request
    for s, handler in before.items():
        signal.signal(s, handler)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75)]
)
def test_a_signal_is_noted_once_training_has_begun_and_ends_what_comes_before_it_at_once(
    listening, number, code
):
    with pytest.raises((PreemptedError, TransientError)) as ended:
        os.kill(os.getpid(), number)
    assert ended.value.exit_code == code
    listening.begin()
    os.kill(os.getpid(), number)
    with pytest.raises(Stopped) as stopped:
        decide(listening.votes())
    assert stopped.value.error("stopped").exit_code == code


def test_without_a_request_nobody_votes(listening):
    assert listening.votes() == [0.0] * len(REASONS)
    decide(listening.votes())


@pytest.mark.parametrize(("pause", "code"), [(0.0, 0), (1.2, -signal.SIGINT)])
def test_a_second_interrupt_ends_at_once_where_it_is_not_the_first_one_told_twice(pause, code):
    program = (
        "import os, signal, types; from trainer.engine import requests\n"
        "now = [100.0]; requests.time = types.SimpleNamespace(monotonic=lambda: now[0])\n"
        "r = requests.Requests(); r.listen(); r.begin()\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        f"now[0] += {pause}\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == code


def test_of_several_reasons_all_ranks_take_the_same():
    sums = [float(reason in (signal.SIGUSR1, "time limit", signal.SIGTERM)) for reason in REASONS]
    with pytest.raises(Stopped) as stopped:
        decide(sums)
    assert stopped.value.reason == signal.SIGTERM


def test_a_limit_is_seconds_or_hours_minutes_seconds():
    assert [parse_limit(t) for t in ("90", "01:30", "00:01:30", "01:00:00")] == [90, 90, 90, 3600]
    for wrong in ("", "1h", "-5", "1:2:3:4", "0", "1:", "1.5"):
        with pytest.raises(ConfigError, match="HH:MM:SS"):
            parse_limit(wrong)


def test_the_earlier_of_the_limit_and_slurm_s_end_counts(monkeypatch):
    monkeypatch.delenv(requests.END_TIME, raising=False)
    assert deadline_of(None, now=1000.0, monotonic=50.0) is None
    assert deadline_of("60", now=1000.0, monotonic=50.0) == 110
    monkeypatch.setenv(requests.END_TIME, "1020")
    assert deadline_of("60", now=1000.0, monotonic=50.0) == 70
    assert deadline_of("10", now=1000.0, monotonic=50.0) == 60


def test_the_margin_is_learnt_from_saves_and_steps(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    request = Requests(deadline=100.0)
    assert request.margin.seconds == 10  # a tenth, as nothing was measured
    request.votes()
    clock[0] = 4.0
    request.votes()  # a step of 4 s
    request.saved_in(20.0)
    assert request.margin.seconds == 2 * 20 + 1.5 * 4
    clock[0] = 50.0
    request.votes()
    assert request.margin.step_s == 4  # what stood between was a save
    assert not request.asked()
    clock[0] = 54.0
    assert request.asked()


def test_a_stop_file_is_seen_within_a_second_by_a_rank_that_looks_for_it(tmp_path):
    looking, other = Requests(stop_files=requests.stop_files(tmp_path / "align")), Requests()
    assert not looking.asked()
    (tmp_path / "STOP").touch()
    wait_for(looking.asked)
    with pytest.raises(Stopped) as stopped:
        decide(looking.votes())
    assert stopped.value.error("stopped").exit_code == 143
    assert not other.asked()
    with pytest.raises(PreflightError, match="Delete it"):
        refuse_stop_file(tmp_path / "align")


def faults(text):
    return parse_faults(text, ranks=2, steps=10, checkpoint_every=4)


def test_faults_are_read_also_those_of_a_checkpoint_by_its_number():
    assert faults("kill:1@7,term:0@9") == (Fault("kill", 1, 7), Fault("term", 0, 9))
    assert faults("enospc:0@8") == (Fault("enospc", 0, 8, saving=True),)
    # Checkpoints of steps 4, 8 and 10, the last one.
    assert faults("enospc:0@ckpt2,kill:1@ckpt3") == (
        Fault("enospc", 0, 8, saving=True),
        Fault("kill", 1, 10, saving=True),
    )
    assert faults("") == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kil:1@7", "did you mean 'kill'"),
        ("kill@7", "KIND:RANK@STEP or KIND:RANK@ckptN"),
        ("kill:0@7;term:1@9", "KIND:RANK@STEP or KIND:RANK@ckptN"),
        ("kill:2@7", "no rank 2; the ranks are 0 to 1"),
        ("kill:0@11", "no step 11; the stage has steps 1 to 10"),
        ("kill:0@0", "no step 0"),
        ("enospc:0@ckpt4", "no checkpoint 4; the stage has 3, one every 4 of its 10 steps"),
        ("nan:0@ckpt1", "only kill, .* enospc strike at a checkpoint"),
    ],
)
def test_a_fault_that_is_none_or_could_never_strike_is_refused(text, says):
    with pytest.raises(ConfigError, match=says):
        faults(text)


def test_a_fault_of_a_checkpoint_strikes_there_and_not_in_its_step(monkeypatch):
    struck = []
    monkeypatch.setattr(os, "kill", lambda pid, number: struck.append(number))
    both = faults("term:1@4,usr1:1@ckpt1,enospc:0@ckpt1")
    strike(both, 1, 4, 0.0)
    assert struck == [signal.SIGTERM]
    strike_save(both, 1, 4)
    assert struck == [signal.SIGTERM, signal.SIGUSR1]
    strike(both, 0, 4, 0.0)
    strike_save(both, 0, 8)
    with pytest.raises(OSError, match="No space left"):
        strike_save(both, 0, 4)


def test_a_request_is_not_lost_on_code_that_goes_on_after_any_error():
    def work():
        with abandoning("the work"):
            with suppress(Exception):
                signal.raise_signal(signal.SIGTERM)
            pytest.fail("it went on")

    with pytest.raises(PreemptedError, match="the work was given up"):
        work()


def test_a_request_during_an_import_is_met_after_it(tmp_path, monkeypatch):
    """An error in the callbacks of an import would be printed and forgotten."""
    module = "import signal\nfor _ in range(3):\n    signal.raise_signal(signal.SIGTERM)\n"
    (tmp_path / "asked_while_imported.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    before, imported = signal.getsignal(signal.SIGTERM), []

    def work():
        with abandoning("the work"):
            imported.append(importlib.import_module("asked_while_imported"))
            wait_for(lambda: False)

    with pytest.raises(PreemptedError):
        work()
    assert imported
    assert signal.getsignal(signal.SIGTERM) == before
