"""Checkpoints that are written while training goes on."""

import errno
import itertools
import json
import os
import shutil
import subprocess
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline import manifest
from data_pipeline.errors import DataError, PreflightError
from data_pipeline.manifest import sha256_file
from partly_frozen import engine_of, take_a_step, values_of
from ranks import on_ranks
from trainer.distributed import World, barrier
from trainer.engine import checkpoint, fragment_files
from trainer.engine.saving import Saver, save
from trainer.engine.state import TrainState
from trainer.export.consolidate import consolidate


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)


def in_background(world: World, room: Path) -> str:
    """What is said where rank 1 cannot write."""
    engine, write = engine_of(), fragment_files.write
    lost = []
    noted = []
    saver = Saver(
        engine, room, world, keep=2, may_commit=lambda: not lost, at_commit=lambda step, _: noted.append(step)
    )

    def later(*arguments: Any) -> dict[str, Any]:
        while not (room / "go").exists():
            time.sleep(0.01)
        return write(*arguments)

    fragment_files.write = later
    take_a_step(engine)
    began = values_of(engine)
    saver.begin(TrainState(step=1), {})
    assert saver.poll() is None
    take_a_step(engine)
    take_a_step(engine)
    assert saver.poll() is None
    assert checkpoint.newest(room) == (None, [])
    barrier(world)
    (room / "go").touch()
    while world.is_main and not noted:  # before the ranks agree that it is there
        time.sleep(0.01)
    assert saver.finish().step == 1
    assert noted == [1] * world.is_main
    stepped = values_of(engine)
    assert not same(stepped, began)
    checkpoint.load(engine, checkpoint.newest_for_all(room, world)[0], world)
    assert same(values_of(engine), began)
    # The same steps from there lead to the same bits: the copies that the model computes with came back too.
    take_a_step(engine)
    take_a_step(engine)
    assert same(values_of(engine), stepped)

    answers = [errno.EIO, errno.ESTALE] if world.rank == 1 else []

    def passing(*arguments: Any) -> dict[str, Any]:
        if answers:
            raise OSError(answers.pop(), "away for a moment")
        return write(*arguments)

    fragment_files.write = passing
    saver.begin(TrainState(step=2), {})
    assert saver.finish().step == 2

    def full(*arguments: Any) -> dict[str, Any]:
        if world.rank == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*arguments)

    fragment_files.write = full
    saver.begin(TrainState(step=3), {})
    with pytest.raises(PreflightError) as refused:
        saver.finish()
    barrier(world)
    kept = sorted(p.name for p in checkpoint.checkpoints_dir(room).iterdir())
    assert [name for name in kept if "frozen" not in name] == ["step_000001", "step_000002"]
    assert checkpoint.verify(checkpoint.directory_of(room, 2)).frozen is not None

    fragment_files.write = write
    lost.append(True)
    saver.begin(TrainState(step=3), {})
    with pytest.raises(PreflightError, match="taken this stage over"):
        saver.finish()
    barrier(world)
    lost.clear()
    saver.begin(TrainState(step=4), {})
    assert saver.finish().step == 4
    assert 0 < saver.stall() < 60
    assert saver.stall() == 0
    saver.abandon()
    other = r"(?s)of another model: 4 tensors.*trained.bias: \[5\] in the checkpoint, \[6\]"
    with pytest.raises(DataError, match=other):
        checkpoint.load(engine_of(6), checkpoint.verify(checkpoint.directory_of(room, 4)), world)
    return str(refused.value)


def test_steps_are_taken_while_it_is_written_and_a_rank_that_cannot_write_stops_all(tmp_path):
    said = on_ranks(in_background, tmp_path)
    assert said[0] == said[1]
    assert "step 3 could not be written: No space left on device (rank 1, " in said[1]
    assert (
        "It takes 360 bytes" in said[1]
    )  # 25 weights and 5 biases: 4 bytes each, and as much for each moment
    kept = sorted(p.name for p in checkpoint.checkpoints_dir(tmp_path).iterdir())
    assert [name for name in kept if not name.startswith("frozen")] == ["step_000002", "step_000004"]
    assert sum(name.startswith("frozen") for name in kept) == 1


def slow_disk(world: World, room: Path) -> int:
    """The step that is there, where rank 1's disk takes long for each directory it is to sync."""
    sync = manifest.fsync_directory

    def later(path: Path) -> None:
        time.sleep(0.5)
        sync(path)

    if world.rank == 1:
        manifest.fsync_directory = later
    saver = Saver(engine_of(), room, world, keep=2)
    saver.begin(TrainState(step=1), {})
    step = saver.finish().step
    saver.begin(TrainState(step=2), {})
    return step + saver.finish().step


def test_rank_0_may_name_the_directory_as_soon_as_it_has_seen_the_last_ranks_record(tmp_path):
    assert on_ranks(slow_disk, tmp_path) == [3, 3]


def saved(world: World, room: Path) -> None:
    save(engine_of(), room, TrainState(step=1), {}, world, keep=2)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    room = tmp_path_factory.mktemp("written")
    on_ranks(saved, room, ranks=1)
    return room


def altered(path: Path, change: Any) -> None:
    """Change COMPLETE.json."""
    record = json.loads((path / checkpoint.COMPLETE).read_text())
    change(record)
    (path / checkpoint.COMPLETE).write_text(json.dumps(record))


@pytest.mark.parametrize("part", ["step_000001", "frozen"])
def test_a_tensor_that_is_not_the_one_that_was_saved_is_refused_also_where_its_file_verifies(
    written, tmp_path, part
):
    room = Path(shutil.copytree(written, tmp_path / "copy"))
    (path,) = checkpoint.checkpoints_dir(room).glob(f"{part}*")
    file = path / "rank_00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    found = checkpoint.directory_of(room, 1)
    with pytest.raises(DataError, match="its sha256 is not the recorded one"):
        checkpoint.verify(found)
    altered(path, lambda record: record["files"][file.name].update(sha256=sha256_file(file)))
    checkpoint.verify(found)
    with pytest.raises(DataError, match="came out other than it was saved"):
        consolidate(found)


def test_frozen_weights_that_are_gone_or_damaged_take_their_checkpoints_with_them(written, tmp_path):
    room = Path(shutil.copytree(written, tmp_path / "copy"))
    (frozen,) = checkpoint.checkpoints_dir(room).glob("frozen-*")
    (frozen / checkpoint.COMPLETE).unlink()
    newest, (said,) = checkpoint.newest(room)
    assert newest is None
    assert frozen.name in said


def test_a_checkpoint_of_another_format_says_who_wrote_it(written, tmp_path):
    room = Path(shutil.copytree(written, tmp_path / "copy"))
    for number, who in ((1, "an older Fovea"), (99, "another Fovea")):
        altered(checkpoint.directory_of(room, 1), lambda record, number=number: record.update(format=number))
        with pytest.raises(DataError, match=who):
            checkpoint.verify(checkpoint.directory_of(room, 1))


def test_a_file_is_written_without_a_copy_of_all_its_tensors_in_memory(tmp_path, monkeypatch):
    plain, copies, most = fragment_files._bytes, [], 0

    def copied(values: torch.Tensor) -> Any:  # as from a GPU
        nonlocal most
        copy = plain(values).copy()
        copies.append(weakref.ref(copy))
        most = max(most, sum(there() is not None for there in copies))
        return copy

    monkeypatch.setattr(fragment_files, "_bytes", copied)
    tensors = {f"weight/{n}": (0, torch.full((10,), float(n))) for n in range(8)}
    fragment_files.write(tmp_path / "file", tensors)
    assert most <= 2  # the one before goes when the next is there


def test_sums_do_not_depend_on_the_cut_and_tell_places_apart():
    values = torch.randn(1000).bfloat16()
    whole = fragment_files.added([fragment_files.sums_of(values, 0)])
    cuts = [0, 1, 17, 500, 999, 1000]
    parts = [fragment_files.sums_of(values[a:b], a) for a, b in itertools.pairwise(cuts)]
    assert fragment_files.added(parts) == whole
    values[[3, 700]] = values[[700, 3]]
    assert fragment_files.added([fragment_files.sums_of(values, 0)]) != whole


def seen_late(world: World, room: Path) -> bool:
    """Whether a checkpoint comes back whole whose files rank 0 has verified, and nobody sees for a while."""
    engine = engine_of()
    take_a_step(engine)
    save(engine, room, TrainState(step=1), {}, world, keep=2)
    began = values_of(engine)
    take_a_step(engine)
    found, _ = checkpoint.newest_for_all(room, world)
    if world.is_main:
        hidden = [
            (file, file.rename(file.with_suffix(".late"))) for part in found.parts for file in part.files
        ]
        threading.Timer(0.5, lambda: [late.rename(file) for file, late in hidden]).start()
    barrier(world)
    checkpoint.load(engine, found, world)
    return same(values_of(engine), began)


def test_files_that_another_machine_sees_later_are_waited_for(tmp_path):
    assert on_ranks(seen_late, tmp_path, ranks=2) == [True, True]
    with pytest.raises(DataError, match=r"gone is not to be seen on .* after 0.2 s"):
        checkpoint.wait_until_visible([tmp_path / "gone"], seconds=0.2)


def until_full(world: World, room: Path) -> tuple[int, str]:
    """The step that could not be saved, and what was said."""
    engine = engine_of(180)
    saver = Saver(engine, room, world, keep=2)
    for step in range(1, 9):
        take_a_step(engine)
        saver.begin(TrainState(step=step), {})
        try:
            saver.finish()
        except PreflightError as e:
            return step, str(e)
    raise AssertionError("the disk was never full")


@pytest.mark.slow
def test_a_disk_that_fills_up_keeps_the_checkpoints_that_are_there(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("no right to mount a file system")
    try:
        step, said = on_ranks(until_full, tmp_path, ranks=1)[0]
        # 391 kB each: two of them fit, and the third before the first is deleted does not.
        assert step == 3
        assert "No space left on device" in said
        assert f"It takes {12 * 181 * 180:,} bytes" in said
        newest, rejected = checkpoint.newest(tmp_path)
        assert (newest.step, rejected) == (2, [])
        assert sorted(p.name for p in checkpoint.checkpoints_dir(tmp_path).glob("s*")) == [
            "step_000001",
            "step_000002",
        ]
    finally:
        subprocess.run(["umount", tmp_path], check=True)
