"""A stage that is stopped, taken over or started twice: nothing is lost, and the exit codes are right."""

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from trainer.engine import checkpoint
from trainer.engine.attempts import Attempt, Lease, Place, attempts_dir
from trainer.signals import ASKING
from training import family, held, leaving_nothing, ranks_of, start, train
from waiting import wait_for

EXACT = ("step", "loss", "lr", "grad_norm", "tokens", "target_tokens", "images", "samples", "window", "row")


def training(run_dir, *words, env=None):
    return leaving_nothing(train(run_dir, *words, env=env))


def until(look, process):
    def looked():
        assert process.poll() is None, process.communicate(timeout=60)[0]
        return look()

    return wait_for(looked)


def catches_all(pid):
    """Whether the process has a handler of its own for each signal that asks to stop."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return all(int(caught.split()[1], 16) >> (number - 1) & 1 for number in ASKING)


def end(process):
    output, _ = process.communicate(timeout=600)
    assert "Traceback" not in output, output
    return process.returncode, output


def saved(run_dir):
    found, rejected = checkpoint.newest(run_dir / "align")
    assert not rejected
    return found.step if found else 0


def series(metrics, run_dir):
    return [{k: m[k] for k in EXACT} for m in metrics(run_dir / "align")]


def test_a_request_that_one_rank_alone_sees_is_saved_and_the_run_goes_on_as_if_unbroken(
    run_dir, trained, metrics
):
    with training(run_dir, "--faults", "term:1@5") as process:
        code, output = end(process)
    assert (code, saved(run_dir)) == (143, 5), output
    assert "stopped after step 5 of 12, which is saved, asked by SIGTERM" in output
    assert output.count("asked by SIGTERM") == 1
    with training(run_dir) as process:
        code, output = end(process)
    assert code == 0, output
    assert "resuming after step 5" in output
    assert series(metrics, run_dir) == series(metrics, trained)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_after_five_requests_of_all_kinds_the_run_is_the_unbroken_one(run_dir, trained, metrics):
    for fault, code in (("usr1:0@2", 75), ("int:1@3", 130), ("term:0@4,usr1:1@4", 143)):
        with training(run_dir, "--faults", fault) as process:
            assert end(process)[0] == code
        assert saved(run_dir) == int(fault[-1])
    with training(run_dir, "--faults", "stop:0@6") as process:
        main = held(process)
        (run_dir / "STOP").touch()
        time.sleep(1.1)  # it looks once a second
        main.send_signal(signal.SIGCONT)
        code, output = end(process)
    assert (code, saved(run_dir)) == (143, 6), output
    with training(run_dir) as process:
        code, output = end(process)
    assert code == 3, output
    assert "Delete it" in output
    (run_dir / "STOP").unlink()
    with training(run_dir, "--faults", "stop:0@9") as process:
        main = held(process)
        process.send_signal(signal.SIGTERM)
        main.send_signal(signal.SIGCONT)
        while process.poll() is None:  # also while it saves
            os.killpg(process.pid, signal.SIGTERM)
            time.sleep(0.01)
        code, output = end(process)
    assert (code, saved(run_dir)) == (143, 9), output
    with training(run_dir) as process:
        code, output = end(process)
    assert code == 0, output
    assert series(metrics, run_dir) == series(metrics, trained)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_whole_process_group_with_its_data_workers_gets_a_signal_and_saves_once(run_dir, trained, metrics):
    with training(run_dir, "data.workers=1", "--faults", "stop:0@5") as process:
        main = held(process)
        os.killpg(process.pid, signal.SIGTERM)
        main.send_signal(signal.SIGCONT)
        code, output = end(process)
    assert (code, saved(run_dir)) == (143, 5), output
    with training(run_dir, "data.workers=1") as process:
        code, output = end(process)
    assert code == 0, output
    assert series(metrics, run_dir) == series(metrics, trained)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_request_before_the_first_step_ends_at_once_with_nothing_saved(run_dir):
    with training(run_dir) as process:
        ranks = until(lambda: found if len(found := ranks_of(process.pid)) == 2 else None, process)
        until(lambda: catches_all(ranks[1].pid), process)
        ranks[1].suspend()  # without it the other one cannot begin
        until(lambda: catches_all(ranks[0].pid), process)
        process.send_signal(signal.SIGTERM)
        ranks[1].resume()
        code, output = end(process)
    assert code == 143, output
    assert not (run_dir / "align" / "metrics.jsonl").exists()
    assert saved(run_dir) == 0
    with training(run_dir, "--faults", "term:0@1") as process:
        assert end(process)[0] == 143
    assert saved(run_dir) == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_request_while_data_does_not_come_saves_what_there_is(run_dir):
    file = run_dir / "align" / "metrics.jsonl"
    words = ("data.workers=1", "stages.align.steps=100000", "stages.align.checkpoint_every=100000")
    with training(run_dir, *words) as process:
        until(lambda: file.exists() and file.read_text().count("\n") > 3, process)
        workers = [p for p in family(process.pid) if "multiprocessing.forkserver" in " ".join(p.cmdline())]
        assert len(workers) == 4  # a server and a worker for each rank
        try:
            for worker in workers:
                worker.suspend()
            before = -1
            while before != (before := file.stat().st_size):
                time.sleep(3)
            process.send_signal(signal.SIGTERM)
            code = process.wait()  # what its stopped workers say when they are let go is their own
        finally:
            for worker in workers:
                worker.kill()
    assert code == 143
    assert saved(run_dir) == file.read_text().count("\n")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_time_limit_is_met_with_everything_saved(run_dir, trained, metrics):
    timeline = (trained / "align" / "timeline.jsonl").read_text().splitlines()
    startup = metrics(trained / "align")[0]["time"] - json.loads(timeline[0])["began"]
    limit = int(20 + 4 * startup)
    with training(run_dir, "--time-limit", limit, "stages.align.steps=100000") as process:
        code, output = end(process)
    assert code == 75, output
    assert saved(run_dir) == (run_dir / "align" / "metrics.jsonl").read_text().count("\n")
    assert "near its time limit" in output
    soon = {"SLURM_JOB_END_TIME": str(int(time.time()))}
    with training(run_dir, "stages.align.steps=100000", env=soon) as process:
        assert end(process)[0] == 75


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_evaluation_is_given_up_with_the_right_code_and_writes_nothing(trained, tmp_path):
    out = tmp_path / "results.json"
    evaluated = trained / "align" / "eval"
    assert not evaluated.exists()
    for number, code in ((signal.SIGTERM, 143), (signal.SIGUSR1, 75), (signal.SIGINT, 130)):
        with leaving_nothing(start("eval", trained / "align", "--out", out)) as process:
            until(lambda pid=process.pid: catches_all(pid), process)
            process.send_signal(number)
            process.send_signal(number)
            found, output = end(process)
        assert found == code, output
        assert "evaluation was given up" in output
    assert not out.exists()
    assert not evaluated.exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_hands_a_request_to_its_verb_and_ends_with_its_code(tmp_path):
    with leaving_nothing(start("demo", "--fast", "--out", tmp_path / "demo")) as process:
        verb = until(lambda: psutil.Process(process.pid).children(), process)[0]
        process.send_signal(signal.SIGTERM)
        code, output = end(process)
    assert code == 143, output
    assert "demo stopped at:  fovea " in output
    assert not verb.is_running()


def test_a_second_start_is_refused_and_leaves_the_first_alone(run_dir, fovea, trained, metrics):
    patient = "stages.align.watchdog.floor_s=900"  # the other rank waits for the one that is stopped
    with training(run_dir, patient, "--faults", "stop:0@3") as process:
        main = held(process)
        train = ("train", run_dir / "recipe.yaml", "--stage", "align", "--run", run_dir)
        for alone in ({}, {"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "0"}):
            refused = fovea(*train, "--nproc", 2, env=alone)
            assert refused.returncode == 3, refused.stderr
            assert f"process {main.pid} on " in refused.stderr
            assert "last heartbeat" in refused.stderr
        main.send_signal(signal.SIGCONT)
        code, output = end(process)
    assert code == 0, output
    assert series(metrics, run_dir) == series(metrics, trained)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("sleeps_in", "last"), [(6, 4), (8, 4)])
def test_an_owner_that_slept_and_lost_its_stage_stops_before_it_saves(run_dir, sleeps_in, last):
    # What it has begun is there when the next step begins: one that is still being written would be dropped.
    at_once = "stages.align.checkpoint_async=false"
    with training(run_dir, at_once, "--faults", f"stop:0@{sleeps_in}") as process:
        main = held(process)
        elsewhere = Attempt.here("recipe", Place(host="node17", boot="", processes=""))
        other = Lease.take(run_dir / "align", elsewhere, silent_s=-1)
        main.send_signal(signal.SIGCONT)
        code, output = end(process)
    assert code == 3, output
    assert "taken this stage over" in output
    assert saved(run_dir) == last
    assert not other.lost
    other.release(0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_failure_that_comes_again_and_again_ends_the_chain(run_dir):
    for _ in range(3):
        with training(run_dir, "--faults", "kill:1@2") as process:
            assert end(process)[0] == 75
    with training(run_dir) as process:
        code, output = end(process)
    assert code == 93, output
    assert "rm -r" in output
    at_once = ("stages.align.checkpoint_every=1", "stages.align.checkpoint_async=false")
    with training(run_dir, *at_once, "--faults", "kill:1@4") as process:
        assert end(process)[0] == 75  # another recipe
    assert saved(run_dir) == 3
    with training(run_dir) as process:
        assert end(process)[0] == 0
    assert len(list(attempts_dir(run_dir / "align").glob("*.json"))) == 5
