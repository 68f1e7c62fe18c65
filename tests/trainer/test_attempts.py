"""A stage has one owner, and attempts that lead nowhere come to an end."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from data_pipeline.errors import DataError, NoProgressError, PreflightError
from trainer.engine import attempts
from trainer.engine.attempts import Attempt, Lease, Place, attempts_dir, last_save_s, note_end, refuse_held
from waiting import wait_for

NEVER = 1e6
ELSEWHERE = Place(host="node17", boot="b", processes="p")


@pytest.fixture
def me():
    return Attempt.here("recipe")


def ended(stage_dir, attempt, code, saved=None):
    lease = Lease.take(stage_dir, attempt)
    if saved is not None:
        lease.saved(saved, 1.5)
    lease.release(code)


def test_a_second_owner_is_refused_naming_job_host_process_and_heartbeat(tmp_path, me):
    held = Lease.take(tmp_path, replace(me, job="4711"))
    with pytest.raises(PreflightError) as refused:
        Lease.take(tmp_path, me)
    said = str(refused.value)
    assert f"job 4711, process {os.getpid()} on {me.place.host}" in said
    assert int(re.search(r"last heartbeat (\d+) s ago", said)[1]) < attempts.SILENT_S
    held.release(0)
    Lease.take(tmp_path, me).release(0)
    assert [p.name for p in sorted(attempts_dir(tmp_path).iterdir())] == ["000001.json", "000002.json"]


def test_the_stage_of_a_killed_process_is_free_at_once(tmp_path, me):
    code = (
        "import sys; from pathlib import Path; from trainer.engine.attempts import Attempt, Lease\n"
        "Lease.take(Path(sys.argv[1]), Attempt.here('recipe')); print('held', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    owner = subprocess.Popen([sys.executable, "-c", code, tmp_path], **pipes, text=True)
    assert owner.stdout.readline() == "held\n"
    with pytest.raises(PreflightError, match=f"process {owner.pid} "):
        refuse_held(tmp_path, me)
    owner.kill()
    owner.wait()
    assert refuse_held(tmp_path, me) == 1


def test_a_later_process_with_the_owner_s_number_does_not_count_as_the_owner(tmp_path, me):
    Lease.take(tmp_path, replace(me, began=psutil.Process().create_time() - 100))
    Lease.take(tmp_path, me).release(0)


RACER = """
import sys, time
from pathlib import Path
from data_pipeline.errors import PreflightError
from trainer.engine import attempts

stages, me, link = Path(sys.argv[1]), attempts.Attempt.here('recipe'), attempts._linked

def meet(mine, path):
    "Both have seen that the owner is dead before one of them takes the number."
    (path.parent / f'.met{me.pid}').touch()
    while len(list(path.parent.glob('.met*'))) < 2:
        time.sleep(0.001)
    return link(mine, path)

attempts._linked = meet
for stage in sorted(stages.iterdir()):
    try:
        attempts.Lease.take(stage, me)
        print(stage.name, flush=True)
    except PreflightError:
        pass
print('end', flush=True)
sys.stdin.read()  # an owner that ended would be taken over
"""


def test_of_processes_that_race_for_a_dead_owner_s_stage_one_wins(tmp_path, me):
    stages = [f"{n:02d}" for n in range(20)]
    for name in stages:
        Lease.take(tmp_path / name, replace(me, place=ELSEWHERE), beat_s=NEVER)
        os.utime(attempts_dir(tmp_path / name) / "000001.json", (0, 0))
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, tmp_path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    won = [[line.strip() for line in iter(racer.stdout.readline, "end\n")] for racer in racers]
    for racer in racers:
        racer.communicate()
    assert sorted(won[0] + won[1]) == stages


def test_an_owner_on_another_machine_is_dead_after_a_silence_and_by_no_clock_but_the_files_own(
    tmp_path, me, monkeypatch
):
    Lease.take(tmp_path, replace(me, place=ELSEWHERE, began=me.began + 1e6), beat_s=NEVER)
    monkeypatch.setattr(time, "time", lambda: 1e12)  # a clock that went wrong says nothing
    with pytest.raises(PreflightError, match=r"on node17.*\n.*\n.*repeat the command in 1\d\d s"):
        refuse_held(tmp_path, me)
    file = attempts_dir(tmp_path) / "000001.json"
    os.utime(file, (file.stat().st_mtime - 200,) * 2)
    assert refuse_held(tmp_path, me) == 1


def test_a_heartbeat_keeps_the_stage(tmp_path, me):
    held = Lease.take(tmp_path, replace(me, place=ELSEWHERE), beat_s=0.05)
    file = attempts_dir(tmp_path) / "000001.json"
    os.utime(file, (0, 0))
    wait_for(lambda: file.stat().st_mtime > 0)
    with pytest.raises(PreflightError):
        refuse_held(tmp_path, me)
    held.release(0)


def test_a_requeued_job_does_not_wait_for_its_own_last_run(tmp_path, me):
    Lease.take(tmp_path, replace(me, place=ELSEWHERE, job="7"))
    with pytest.raises(PreflightError):
        refuse_held(tmp_path, replace(me, job="8", requeued=1))
    with pytest.raises(PreflightError):
        refuse_held(tmp_path, replace(me, job="7"))
    assert refuse_held(tmp_path, replace(me, job="7", requeued=1)) == 1


def test_an_owner_that_was_taken_over_knows_and_writes_nothing_more(tmp_path, me):
    slept = Lease.take(tmp_path, replace(me, place=ELSEWHERE))
    assert not slept.lost
    other = Lease.take(tmp_path, me, silent_s=-1)
    assert slept.lost
    assert not other.lost
    before = (attempts_dir(tmp_path) / "000001.json").read_bytes()
    slept.saved(5, 1.0)
    slept.release(0)
    assert (attempts_dir(tmp_path) / "000001.json").read_bytes() == before
    other.release(0)


def test_an_owner_whose_record_was_deleted_knows_also_when_its_number_was_given_again(tmp_path, me):
    first = Lease.take(tmp_path, replace(me, place=ELSEWHERE))
    (attempts_dir(tmp_path) / "000001.json").unlink()
    assert first.lost
    second = Lease.take(tmp_path, me)
    assert first.lost
    assert not second.lost
    first.release(75)
    assert not second.lost
    second.release(0)


def test_a_contender_that_slept_does_not_get_a_number_that_was_given_and_deleted(tmp_path, me):
    folder = attempts_dir(tmp_path)
    held = Lease.take(tmp_path, me)
    (folder / "000001.json").rename(folder / "000009.json")
    mine = folder / ".mine"
    mine.write_bytes(b"{}")
    assert not attempts._linked(mine, folder / "000002.json")
    assert [p.name for p in folder.glob("0*")] == ["000009.json"]
    held.release(0)


def test_a_start_and_two_restarts_without_a_checkpoint_are_the_last(tmp_path, me):
    for code in (75, None, 5):
        Lease.take(tmp_path, replace(me, began=1.0)) if code is None else ended(tmp_path, me, code)
    with pytest.raises(NoProgressError, match=f"rm -r {attempts_dir(tmp_path)}"):
        Lease.take(tmp_path, me)
    assert NoProgressError.exit_code == 93
    refuse_held(tmp_path, Attempt.here("another recipe"))
    for file in attempts_dir(tmp_path).iterdir():
        file.unlink()
    Lease.take(tmp_path, me).release(75)


@pytest.mark.parametrize("code", [2, 3, 4, 130, 143])
def test_attempts_that_were_refused_or_stopped_by_somebody_do_not_count(tmp_path, me, code):
    for _ in range(4):
        ended(tmp_path, me, code)
    for _ in range(2):
        ended(tmp_path, me, 75)
    ended(tmp_path, me, code)
    ended(tmp_path, me, 75)
    with pytest.raises(NoProgressError):
        refuse_held(tmp_path, me)


def test_a_checkpoint_or_a_finished_attempt_begins_the_count_anew(tmp_path, me):
    for saved, last in ((8, 75), (None, 0)):
        for _ in range(2):
            ended(tmp_path, me, 75)
        ended(tmp_path, me, last, saved=saved)
    for _ in range(2):
        ended(tmp_path, me, 75)
    refuse_held(tmp_path, me)
    assert last_save_s(tmp_path) == 1.5


def test_old_attempts_are_let_go_and_numbers_grow(tmp_path, me):
    for _ in range(attempts.KEPT + 3):
        ended(tmp_path, me, 0)
    names = sorted(p.name for p in attempts_dir(tmp_path).iterdir())
    assert (len(names), names[-1]) == (attempts.KEPT, f"{attempts.KEPT + 3:06d}.json")


def test_a_launcher_notes_the_end_of_its_own_attempt_alone(tmp_path, me):
    Lease.take(tmp_path, replace(me, parent=17, began=1.0))
    file = attempts_dir(tmp_path) / "000001.json"
    note_end(tmp_path, 18, 4)
    assert json.loads(file.read_text())["ended"] is None
    note_end(tmp_path, 17, 4)
    assert json.loads(file.read_text())["ended"] == 4
    note_end(tmp_path, 17, 75)
    assert json.loads(file.read_text())["ended"] == 4


def test_a_damaged_record_is_named_with_the_way_out(tmp_path, me):
    ended(tmp_path, me, 0)
    (attempts_dir(tmp_path) / "000001.json").write_text("{")
    with pytest.raises(DataError, match=r"000001\.json is no record(.|\n)*rm -r"):
        refuse_held(tmp_path, me)
