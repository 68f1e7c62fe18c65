"""What is evaluated, or waits for it, is not deleted under its reader; what nobody reads any more is."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from partly_frozen import engine_of
from ranks import on_ranks
from trainer import trained as trained_file
from trainer.chat import Chat
from trainer.cli import main
from trainer.distributed import World
from trainer.engine import checkpoint
from trainer.engine.pins import pin_for_job, pinned, pinning, pins_dir
from trainer.engine.place import Place
from trainer.engine.saving import save
from trainer.engine.state import TrainState
from trainer.watch import Due, Watch
from waiting import wait_for

READER = """
import sys
from pathlib import Path
from trainer.engine.pins import pinning
with pinning() as pins:
    pins.hold([Path(name) for name in sys.argv[1:]])
    print("held", flush=True)
    sys.stdin.read()  # until it is killed, or nobody is there who could
"""


def reader(*checkpoints: Path) -> subprocess.Popen[str]:
    """Another process that keeps these."""
    argv = [sys.executable, "-c", READER, *map(str, checkpoints)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def there(stage_dir: Path) -> list[str]:
    return sorted(p.name for p in checkpoint.checkpoints_dir(stage_dir).iterdir())


def read_while_it_trains(world: World, room: Path) -> list[list[str]]:
    """What there is after each of several saves: the first checkpoint is read by a process that is killed
    before the last of them."""
    engine, stages = engine_of(), []
    save(engine, room, TrainState(step=1), {}, world, keep=2)
    reading = reader(checkpoint.directory_of(room, 1))
    other = engine_of(width=6)  # with other frozen weights
    for step in range(2, 6):
        if step == 5:
            reading.kill()  # SIGKILL
            reading.wait()
        else:
            checkpoint.verify(checkpoint.directory_of(room, 1))
        save(other, room, TrainState(step=step), {}, world, keep=2)
        stages.append(there(room))
    return stages


def test_training_keeps_what_is_read_with_its_frozen_weights_until_the_reader_is_dead(tmp_path):
    (stages,) = on_ranks(read_while_it_trains, tmp_path, ranks=1)
    steps = [[int(name[5:]) for name in names if name.startswith("step_")] for names in stages]
    assert steps == [[1, 2], [1, 2, 3], [1, 3, 4], [4, 5]]
    assert [sum(name.startswith("frozen-") for name in names) for names in stages] == [2, 2, 2, 1]
    assert list(pins_dir(tmp_path).iterdir()) == []


def test_a_pin_goes_with_what_it_was_for(tmp_path):
    one, two = (checkpoint.directory_of(tmp_path, step) for step in (1, 2))
    with pinning() as mine, pinning() as theirs:
        mine.hold([one, two])
        theirs.hold([one])
        assert pinned(tmp_path) == {"step_000001", "step_000002"}
        mine.hold([two])
        assert pinned(tmp_path) == {"step_000001", "step_000002"}  # of two readers one is left
        theirs.hold([])
        assert pinned(tmp_path) == {"step_000002"}
    assert pinned(tmp_path) == set()


def test_a_reader_elsewhere_counts_as_long_as_it_gives_signs_of_life(tmp_path):
    path = checkpoint.directory_of(tmp_path, 7)
    with pinning(beat_s=0.05) as pins:
        pins.hold([path])
        (file,) = pins_dir(tmp_path).iterdir()
        os.utime(file, (1, 1))
        wait_for(lambda: file.stat().st_mtime > 1)  # its heartbeat
        elsewhere = {**json.loads(file.read_text()), "place": vars(replace(Place.here(), host="node17"))}
    for text in (json.dumps(elsewhere), '{"pla'):  # the second was cut short by a kill
        file.write_text(text)
        assert pinned(tmp_path) == {path.name}
        os.utime(file, (time.time() - 200,) * 2)
        assert pinned(tmp_path) == set()
        assert not file.exists()


def test_a_later_process_with_the_reader_s_number_does_not_count_as_the_reader(tmp_path):
    with pinning() as pins:
        pins.hold([checkpoint.directory_of(tmp_path, 7)])
        (file,) = pins_dir(tmp_path).iterdir()
        owner = json.loads(file.read_text())
        file.write_text(json.dumps({**owner, "began": owner["began"] - 100}))
        assert pinned(tmp_path) == set()


def test_a_pin_for_a_job_counts_for_a_day_where_nobody_knows_jobs(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    pin_for_job(checkpoint.directory_of(tmp_path, 7), "4712_3")
    assert pinned(tmp_path) == {"step_000007"}
    (file,) = pins_dir(tmp_path).iterdir()
    os.utime(file, (time.time() - 23 * 3600,) * 2)
    assert pinned(tmp_path) == {"step_000007"}
    os.utime(file, (time.time() - 25 * 3600,) * 2)
    assert pinned(tmp_path) == set()
    assert not file.exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_run_that_may_only_be_read_is_read_without_a_pin(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pinning() as pins:
            pins.hold([checkpoint.directory_of(tmp_path, 7)])
            assert pinned(tmp_path) == set()
    finally:
        tmp_path.chmod(0o700)


def test_of_a_stage_no_more_are_kept_than_was_said(tmp_path):
    due = [
        Due(tmp_path / stage / "checkpoints" / f"step_{step:06d}", step, "")
        for stage in ("align", "instruct")
        for step in (1, 2, 3)
    ]
    kept = Watch(tmp_path, None, "quick", None, pin=2).next_of(due)
    assert [f"{p.parents[1].name} {p.name}" for p in kept] == [
        "align step_000001",
        "align step_000002",
        "instruct step_000001",
        "instruct step_000002",
    ]
    assert Watch(tmp_path, None, "quick", None, pin=0).next_of(due) == []


def test_what_a_watcher_evaluates_and_what_is_next_stays_until_the_watcher_is_killed(trained, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    stage_dir = run / "align"
    shutil.rmtree(stage_dir / "eval", ignore_errors=True)
    checkpoints = checkpoint.checkpoints_dir(stage_dir)
    last = checkpoints / "step_000012"
    tokenizer = run / "backbones" / "tokenizer" / "tokenizer.json"
    tokenizer.unlink()
    os.mkfifo(tokenizer)  # an evaluation comes to it once it holds its pin, and waits
    for step in range(1, 5):
        shutil.copytree(last, checkpoints / f"step_{step:06d}")
    for old in checkpoints.glob("step_*"):
        if old != last and checkpoint.step_of(old) > 4:
            shutil.rmtree(old)

    argv = [sys.executable, "-m", "trainer.cli", "watch", str(run), "--pin", "3"]
    watcher = psutil.Popen(argv, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    evaluating = None
    try:
        wait_for(lambda: len(list(pins_dir(stage_dir).glob("*.json"))) == 4)  # three, and `fovea eval`'s own
        (evaluating,) = watcher.children()
        assert pinned(stage_dir) == {"step_000001", "step_000002", "step_000003"}
        assert retained(checkpoints) == [1, 2, 3, 12]
        watcher.kill()
        watcher.wait()
        assert retained(checkpoints) == [1, 12]  # it is read yet
        evaluating.kill()
        wait_for(lambda: pinned(stage_dir) == set())
        assert retained(checkpoints) == [12]
    finally:
        for process in filter(None, (watcher, evaluating)):
            if process.is_running():
                process.kill()


@pytest.mark.parametrize("verb", ["export", "serve"])
def test_what_is_exported_or_served_stays_until_it_is_read(verb, trained, tmp_path, monkeypatch):
    stage_dir = Path(shutil.copytree(trained / "align", tmp_path / "run/align"))
    for name in ("recipe.resolved.yaml", "backbones", "data"):
        (tmp_path / "run" / name).symlink_to(trained / name)
    consolidate, kept = trained_file.consolidate, []

    def while_it_is_read(path: Path) -> dict:
        kept.append(pinned(stage_dir))
        return consolidate(path)

    monkeypatch.setattr(trained_file, "consolidate", while_it_is_read)
    if verb == "export":
        assert main(["export", str(stage_dir), str(tmp_path / "out")]) == 0
    else:
        Chat.open(stage_dir / "checkpoints/step_000012")
    assert kept == [{"step_000012"}]
    assert pinned(stage_dir) == set()


def retained(checkpoints: Path) -> list[int]:
    checkpoint.retain(checkpoints, 1)
    return [checkpoint.step_of(p) for p in checkpoint.committed(checkpoints)]
