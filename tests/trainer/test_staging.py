"""Checkpoints that are left on the node's own disk first."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.errors import ConfigError, PreflightError
from partly_frozen import engine_of, take_a_step, values_of
from ranks import on_ranks
from trainer.distributed import World, barrier
from trainer.engine import checkpoint, fragment_files
from trainer.engine.saving import Saver
from trainer.engine.staging import Staging, staging_directory
from trainer.engine.state import TrainState


def staged(world: World, room: Path) -> tuple[bool, list[str], list[str], str]:
    """Whether the weights at the save come back, what lay on the nodes' disks before and after it was moved,
    and what is said where rank 1's disk is full."""
    disk = room / f"node-{world.rank}"
    engine, move = engine_of(), Staging.move

    def later(*arguments: Any) -> dict[str, Any]:
        while not (room / "go").exists():
            time.sleep(0.01)
        return move(*arguments)

    Staging.move = later
    take_a_step(engine)
    began = values_of(engine)
    saver = Saver(engine, room / "run", world, keep=2, staging=disk)
    saver.begin(TrainState(step=1), {})
    take_a_step(engine)
    lay = sorted(p.name.split("-", 2)[2] for p in disk.iterdir())
    barrier(world)
    (room / "go").touch()
    saver.finish()
    left = [p.name for p in disk.iterdir()]
    checkpoint.load(engine, checkpoint.newest_for_all(room / "run", world)[0], world)
    back = values_of(engine)
    same = back.keys() == began.keys() and all(back[key].equal(began[key]) for key in back)

    def full(*arguments: Any, **words: Any) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if world.rank == 1:
        fragment_files.write = full
    with pytest.raises(PreflightError) as refused:
        saver.begin(TrainState(step=2), {})
    barrier(world)
    assert not list(disk.iterdir())
    assert checkpoint.newest(room / "run")[0].step == 1
    return same, lay, left, str(refused.value)


def test_what_is_saved_is_what_was_held_at_the_save_and_nothing_stays_on_the_node(tmp_path):
    for rank, (same, lay, left, said) in enumerate(on_ranks(staged, tmp_path)):
        assert same
        assert lay == [f"{rank}-frozen.tmp", f"{rank}-step_000001.tmp"]
        assert left == []
        assert "step 2 could not be written: No space left on device (rank 1, " in said
        assert str(tmp_path / "node-1") in said


def test_of_a_file_that_the_disk_could_not_hold_nothing_stays(tmp_path):
    staging = Staging(tmp_path / "node", tmp_path / "run", rank=0)
    staging.leave("part", {"weight/a": (0, torch.arange(9.0))})
    (file,) = (tmp_path / "node").iterdir()
    full = Staging(tmp_path / "node", tmp_path / "run", rank=0)
    file.unlink()
    file.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as refused:
        full.leave("part", {"weight/a": (0, torch.arange(9.0))})
    assert refused.value.filename == str(file)
    full.clear()
    assert list((tmp_path / "node").iterdir()) == []


def test_a_disk_that_gives_back_other_bytes_is_named(tmp_path):
    staging = Staging(tmp_path / "node", tmp_path / "run", rank=0)
    staging.leave("part", {"weight/a": (0, torch.arange(9.0))})
    (file,) = (tmp_path / "node").iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(OSError, match="other bytes than were written") as refused:
        staging.move("part", tmp_path / "file", lambda nbytes: None)
    assert refused.value.filename == str(file)
    data[-1] ^= 1
    file.write_bytes(data)
    seen = []
    about = staging.move("part", tmp_path / "file", seen.append)
    direct = fragment_files.write(tmp_path / "direct", {"weight/a": (0, torch.arange(9.0))})
    assert about == direct
    assert (tmp_path / "file").read_bytes() == (tmp_path / "direct").read_bytes()
    assert sum(seen) == about["nbytes"]
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_a_directory_is_named_by_the_nodes_own_variables(monkeypatch):
    monkeypatch.setenv("LOCAL_SCRATCH", "/local/7")
    assert staging_directory("$LOCAL_SCRATCH/checkpoints") == Path("/local/7/checkpoints")
    assert staging_directory(None) is None
    monkeypatch.delenv("LOCAL_SCRATCH")
    for wrong in ("$LOCAL_SCRATCH/checkpoints", "checkpoints"):
        with pytest.raises(ConfigError, match="an absolute path is needed"):
            staging_directory(wrong)


def test_a_run_that_stages_its_checkpoints_is_the_run_that_does_not(
    run_dir, trained, fovea, metrics, tmp_path
):
    node = tmp_path / "node"
    words = ("--stage", "align", "--run", run_dir, "--nproc", 2)
    done = fovea(
        "train", run_dir / "recipe.yaml", *words, "stages.align.checkpoint_staging=$NODE/staged",
        env={"NODE": str(node)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list((node / "staged").iterdir()) == []
    places = ("ledger", "loss", "grad_norm")
    assert [[m[k] for k in places] for m in metrics(run_dir / "align")] == [
        [m[k] for k in places] for m in metrics(trained / "align")
    ]
    found, rejected = checkpoint.newest(run_dir / "align")
    assert (found.step, rejected) == (12, [])
