"""A save that ends at any of its changes to the file system leaves the checkpoint before it, or its own."""

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import DataError, PreflightError
from partly_frozen import engine_of
from ranks import on_ranks
from trainer.distributed import World
from trainer.engine import checkpoint, fragment_files
from trainer.engine.saving import Saver, save
from trainer.engine.state import TrainState

CHANGES = ("os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.truncate")
DIED = 77


class Changes:
    """Counts what changes the file system, threads included; does `then` in place of the one number `at`."""

    def __init__(self) -> None:
        self.seen, self.at, self.then = 0, None, lambda: None
        self._fsync = os.fsync
        os.fsync = self._noted_fsync
        sys.addaudithook(self._hook)

    def arm(self, at: int | None, then: Callable[[], Any]) -> None:
        self.seen, self.at, self.then = 0, at, then

    def change(self, *_: object) -> None:
        self.seen += 1
        if self.seen == self.at:
            self.then()

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        writing = event == "open" and args[2] is not None and args[2] & (os.O_WRONLY | os.O_RDWR)
        if writing or event in CHANGES:
            self.change()

    def _noted_fsync(self, fd: int) -> None:
        self.change()
        self._fsync(fd)


def enospc() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "there")


def every(world: World, room: Path, stride: int) -> tuple[list[Any], list[Any]]:
    """What becomes of a first checkpoint, and of a later one, where the save dies, or the disk is full,
    at each `stride`-th change."""
    engine, changes = engine_of(), Changes()
    # Pieces of a file, as they are handed to the system, are changes too.
    write = fragment_files.write
    fragment_files.write = lambda path, fragments, wrote: write(path, fragments, changes.change)
    began = {"first": room / "none", "later": room / "two"}
    began["first"].mkdir()
    for step in (1, 2):
        save(engine, began["later"], TrainState(step=step), {}, world, keep=2)
    frozen = checkpoint.newest(began["later"])[0].frozen.path.name

    def attempt(name: str, at: int | None, then: Callable[[], Any]) -> int:
        stage_dir = room / name
        shutil.rmtree(stage_dir, ignore_errors=True)
        shutil.copytree(began[name], stage_dir)
        known = stage_dir / "checkpoints" / frozen if name == "later" else None
        saver = Saver(engine, stage_dir, world, keep=2, frozen=known)
        changes.arm(at, then)
        try:
            saver.begin(TrainState(step=3), {})
            saver.finish()
        finally:
            seen = changes.seen
            changes.arm(None, enospc)
        return seen

    died, full = [], []
    for name in began:
        stage_dir = room / name
        for at in range(1, attempt(name, None, enospc) + 1, stride):
            child = os.fork()
            if child == 0:
                attempt(name, at, lambda: os._exit(DIED))
                os._exit(0)
            _, status = os.waitpid(child, 0)
            after = found_in(stage_dir)
            save(engine, stage_dir, TrainState(step=9), {}, world, keep=2)
            code = os.waitstatus_to_exitcode(status)
            died.append((name, code, after, checkpoint.newest(stage_dir)[0].step, left_in(stage_dir)))
            said = ""
            try:
                attempt(name, at, enospc)
            except PreflightError as e:
                said = str(e)
            full.append((name, said, found_in(stage_dir), left_in(stage_dir)))
    return died, full


def found_in(stage_dir: Path) -> tuple[int | None, int, list[str]]:
    """The step of the checkpoint that a resume takes, how many verify, and what is said of others."""
    newest, rejected = checkpoint.newest(stage_dir)
    whole = 0
    for path in checkpoint.committed(checkpoint.checkpoints_dir(stage_dir)):
        with contextlib.suppress(DataError):
            whole += bool(checkpoint.verify(path))
    return newest.step if newest else None, whole, rejected


def left_in(stage_dir: Path) -> list[str]:
    return [p.name for p in checkpoint.checkpoints_dir(stage_dir).glob("*" + checkpoint.UNFINISHED)]


def check(room: Path, stride: int) -> int:
    died, full = on_ranks(every, room, stride, ranks=1)[0]
    for name, code, (step, whole, rejected), later, left in died:
        assert code == DIED
        assert rejected == []
        assert step in ((None, 3) if name == "first" else (2, 3))
        assert whole >= (2 if name == "later" else step == 3)
        assert (later, left) == (9, [])
    for name, said, (step, whole, rejected), left in full:
        assert (rejected, left) == ([], [])
        assert whole >= (2 if name == "later" else step == 3)
        assert step in ((None, 3) if name == "first" else (2, 3))
        if said:
            assert "step 3 could not be written: No space left on device" in said
            assert "It takes" in said
        else:
            assert step == 3
    assert {step for *_, (step, _, _), _, _ in died} == {None, 2, 3}
    assert any(said and step != 3 for _, said, (step, *_), _ in full)
    return len(died)


def test_a_save_that_dies_or_finds_the_disk_full_costs_no_checkpoint_at_some_points(tmp_path):
    assert check(tmp_path, 5) > 8


@pytest.mark.slow
def test_a_save_that_dies_or_finds_the_disk_full_costs_no_checkpoint_at_every_point(tmp_path):
    assert check(tmp_path, 1) > 50
