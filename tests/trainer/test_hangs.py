"""Training on ranks of which one hangs, dies or is slow: the line, the code, the stacks, nothing left."""

import json
import re
import signal
from contextlib import ExitStack
from unittest.mock import Mock

import psutil
import pytest
import torch

from data_pipeline.errors import TransientError
from trainer.engine.attempts import Attempt, attempts_dir
from trainer.launch import meeting_port
from trainer.out_of_memory import explained
from training import family, leaving_nothing, ranks_of, start, train
from waiting import wait_for

FIRST_S = 200
WATCHED = ("stages.align.watchdog.floor_s=8", f"stages.align.watchdog.first_s={FIRST_S}")
STEP = 7


def watched(run_dir, *words, env=None):
    return leaving_nothing(train(run_dir, *words, *WATCHED, env=env))


def end(process):
    output, _ = process.communicate(timeout=600)
    assert "Traceback" not in output, output
    return process.returncode, output


def of_run(run_dir):
    """Processes that have to do with it, those that prepare data included."""
    found = []
    for p in psutil.process_iter():
        try:
            if str(run_dir) in p.environ().get("FOVEA_TEST_RUN", ""):
                found.append(p)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def gone(run_dir):
    return wait_for(lambda: not of_run(run_dir))


def events(run_dir):
    return [json.loads(line) for line in (run_dir / "align" / "events.jsonl").read_text().splitlines()]


def stacks(run_dir, step=STEP):
    directory = run_dir / "align" / "stacks" / f"step_{step}"
    return {p.name: p.read_text() for p in directory.iterdir()}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["stop", "gil"])
def test_a_rank_that_hangs_ends_the_run_within_its_limit(run_dir, kind):
    with watched(run_dir, "--faults", f"{kind}:1@{STEP}", env={"FOVEA_TEST_RUN": str(run_dir)}) as process:
        code, output = end(process)
        assert gone(run_dir)
    assert code == 75, output
    (event,) = [e for e in events(run_dir) if e["event"] == "hang"]
    assert (event["rank"], event["phase"], event["step"]) == (1, "backward", STEP)
    assert len(event["samples"]) > 0
    assert output.count(f"fovea: rank 1 on {event['host']} stood still in backward of step {STEP}") == 1
    assert event["samples"][0] in output
    assert ("stopped (state T)" in output) == (kind == "stop")
    stood, limit = map(int, re.search(r" for (\d+) s \(limit (\d+) s\)", event["line"]).groups())
    assert limit <= stood < 2 * limit
    assert limit < FIRST_S  # it was learnt
    left = stacks(run_dir)
    assert sorted(left) == ["rank_0.txt", "rank_1.txt"]
    assert "in all_reduce" in left["rank_0.txt"]
    assert ("stopped (state T)" if kind == "stop" else "in strike") in left["rank_1.txt"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "how"), [("kill:0", "SIGKILL"), ("abort:1", "SIGABRT")])
def test_a_rank_that_dies_is_named_with_its_place(run_dir, kind, how):
    rank = int(kind[-1])
    with watched(run_dir, "--faults", f"{kind}@{STEP}", env={"FOVEA_TEST_RUN": str(run_dir)}) as process:
        code, output = end(process)
        assert gone(run_dir)
    assert code == 75, output
    (event,) = [e for e in events(run_dir) if e["event"] == "death"]
    assert (event["rank"], event["signal"], event["step"]) == (rank, how, STEP)
    assert f"fovea: rank {rank} was ended by {how} on {event['host']} in backward of step {STEP}" in output
    left = stacks(run_dir)
    assert sorted(left) == ["rank_0.txt", "rank_1.txt"]
    if how == "SIGABRT":
        assert "Fatal Python error: Aborted" in left["rank_1.txt"]
        assert "in strike" in left["rank_1.txt"]
    lines = (run_dir / "align" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, STEP))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ranks_without_a_launcher_end_by_themselves_where_one_hangs_for_want_of_data(run_dir):
    """As under srun or torchrun: nobody sees them all. What prepares rank 1's data stands still."""
    words = ("train", run_dir / "recipe.yaml", "--stage", "align", "--run", run_dir, *WATCHED)
    words += ("data.workers=1", "stages.align.steps=100000", "stages.align.checkpoint_every=100000")
    file = run_dir / "align" / "metrics.jsonl"
    with meeting_port() as port, ExitStack() as stack:
        zero, one = (
            stack.enter_context(leaving_nothing(start(*words, env=as_rank(number, port, run_dir))))
            for number in (0, 1)
        )
        wait_for(lambda: file.exists() and file.read_text().count("\n") > 4)
        for p in family(one.pid)[:-1]:
            p.send_signal(signal.SIGSTOP)
        ended = [end(p) for p in (zero, one)]
        assert gone(run_dir)
    output = "".join(text for _, text in ended)
    assert [code for code, _ in ended] == [75, 75], output
    (event,) = [e for e in events(run_dir) if e["event"] == "hang"]
    assert (event["rank"], event["phase"]) == (1, "data")
    assert output.count("stood still in data") == 1
    (attempt,) = attempts_dir(run_dir / "align").glob("*.json")
    assert Attempt.read(attempt).ended == 75
    left = stacks(run_dir, event["step"])
    assert "in batches" in left["rank_1.txt"]
    assert "in all_reduce" in left["rank_0.txt"]


def as_rank(number, port, run_dir):
    placed = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "MASTER_PORT": port}
    return {**{k: str(v) for k, v in placed.items()}, "FOVEA_TEST_RUN": str(run_dir)}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_data_worker_that_is_killed_is_named_with_its_memory_and_not_as_a_lost_rank(run_dir):
    words = ("data.workers=1", "stages.align.steps=100000", "stages.align.checkpoint_every=100000")
    file = run_dir / "align" / "metrics.jsonl"
    with watched(run_dir, *words, env={"FOVEA_TEST_RUN": str(run_dir)}) as process:
        wait_for(lambda: file.exists() and file.read_text().count("\n") > 4)
        one = ranks_of(process.pid)[1]
        server = next(p for p in one.children() if "forkserver" in " ".join(p.cmdline()))
        (worker,) = server.children()
        worker.kill()
        code, output = end(process)
        assert gone(run_dir)
    assert code == 75, output
    assert "a data worker of rank 1 on" in output
    held = re.search(rf"process {worker.pid} held (\d+\.\d+) GiB", output)
    assert 0.01 < float(held.group(1)) < 2, output
    assert "lost its connection" not in output


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_rank_without_memory_says_what_it_held_and_what_it_was_at(run_dir):
    with watched(run_dir, "--faults", f"oom:1@{STEP}") as process:
        code, output = end(process)
    assert code == 75, output
    assert f"rank 1 ran out of memory in step {STEP}: MemoryError" in output
    assert re.search(
        r"It held weights [\d.e-]+ GiB, optimizer [\d.e-]+ GiB, [\d.]+ GiB in the host's", output
    )
    assert re.search(r"micro-batches of 2 rows of 96 tokens, \d+ patches in the largest; its largest", output)
    assert re.search(r"row \d+ of 'scenes_\w+' \(\d+ tokens, 1 images, \d+ patches\)", output)
    assert "ds_config: zero3-offload" in output


def test_torch_s_own_word_for_want_of_memory_is_known_and_other_errors_stay_what_they_are():
    run = Mock()
    run.engine.module.parameters.return_value = ()
    run.stream.rows, run.engine.optimizer.optimizer.state = (), {}
    run.state.step = 6
    with pytest.raises(TransientError, match="ran out of memory"), explained(run):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="size"), explained(run):
        torch.zeros(2) + torch.zeros(3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_slow_rank_is_named_with_its_cause_and_the_run_goes_on(run_dir):
    words = ("stages.align.watchdog.straggler_steps=6", "--faults", "slow:1@1")
    with watched(run_dir, *words) as process:
        code, output = end(process)
    assert code == 0, output
    found = [e for e in events(run_dir) if e["event"] == "straggler"]
    assert [e["step"] for e in found] == [6, 12]
    assert {(e["rank"], e["cause"]) for e in found} == {(1, "forward and backward")}
    assert all(e["own_s"] > 1.5 * e["others_s"] for e in found)
    assert output.count("rank 1 on") == output.count("is slow:") == 2
    waits = [json.loads(line) for line in (run_dir / "align" / "metrics.jsonl").read_text().splitlines()]
    assert all(m["comm_wait_s"] > 0 and m["data_wait_s"] >= 0 for m in waits)
