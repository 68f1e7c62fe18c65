"""Optimizer state on a drive: the same steps as in memory, and the same checkpoints, both ways."""

import fcntl
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from torch import nn
from torch.utils.cpp_extension import _get_build_directory

from data_pipeline.errors import PreflightError
from drive import without_kernel
from ranks import on_ranks
from trainer.distributed import World, all_sum
from trainer.engine import checkpoint, saving
from trainer.engine.ds_config import merge_ds_config
from trainer.engine.fragments import held
from trainer.engine.gate import Gate, norms_by_module
from trainer.engine.initialize import initialize
from trainer.engine.moves import Move
from trainer.engine.state import TrainState
from trainer.engine.swapped import claim, on_a_drive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

WIDE = 384
STEPS = 3
MEMORY: dict[str, Any] = {}
CPU = {"offload_optimizer": {"device": "cpu"}}
DRIVE = {"offload_optimizer": {"device": "nvme"}}
PIPELINED = {
    "offload_optimizer": {
        "device": "nvme", "pipeline_read": True, "pipeline_write": True, "buffer_count": 12
    },
    "offload_param": {"device": "cpu"},
}  # fmt: skip


@dataclass(frozen=True)
class Lab:
    """`room` has a directory for the drive. Training is the same on all engines but for `zero`: bit by bit
    where nothing is clipped, as DeepSpeed rounds the gradient norm otherwise where it offloads."""

    world: World
    room: Path

    def engine(
        self, zero: dict[str, Any], seed: int = 0, bf16: bool = False, clip: float = 0.0
    ) -> deepspeed.DeepSpeedEngine:
        """Three groups of 1.2 MB a rank, which go to the drive, and a small one, which does not."""
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(16, WIDE).requires_grad_(False))
        for _ in range(3):
            model.extend([nn.Linear(WIDE, 2 * WIDE), nn.Tanh(), nn.Linear(2 * WIDE, WIDE)])
        model.append(nn.Linear(WIDE, 1))
        offload = zero.get("offload_optimizer", {})
        if offload.get("device") == "nvme":
            zero = zero | {"offload_optimizer": offload | {"nvme_path": str(self.room / "drive")}}
        config = {
            "zero_optimization": {
                "stage": 3, "sub_group_size": 200_000, "stage3_param_persistence_threshold": 100, **zero
            },
            "bf16": {"enabled": bf16},
            "data_types": {"grad_accum_dtype": "fp32"},
        }  # fmt: skip
        merged = merge_ds_config(config, micro_batch=2, accumulation=1, world_size=self.world.size, clip=clip)
        groups = [{"params": [p for p in model.parameters() if p.requires_grad]}]
        return initialize(model, groups, merged, lr=1e-3, betas=(0.9, 0.95))

    def steps(self, engine: deepspeed.DeepSpeedEngine, steps: range) -> list[float]:
        losses = []
        for step in steps:
            draw = torch.Generator().manual_seed(10 * step + self.world.rank)
            x = torch.randn(2, 16, generator=draw).to(next(engine.module.parameters()).dtype)
            loss = engine(x).float().square().sum()
            engine.backward(loss)
            engine.step()
            losses += all_sum(self.world, float(loss.detach()))
        return losses

    def save(self, engine: deepspeed.DeepSpeedEngine, name: str, step: int) -> dict[str, Any]:
        """What COMPLETE.json says of each tensor: its sums over all ranks do not depend on how it is cut."""
        path = saving.save(engine, self.room / name, TrainState(step=step), {}, self.world, keep=2)
        return json.loads((path / checkpoint.COMPLETE).read_text())["tensors"]

    def load(self, engine: deepspeed.DeepSpeedEngine, name: str) -> None:
        found, rejected = checkpoint.newest_for_all(self.room / name, self.world)
        assert found is not None
        assert not rejected
        checkpoint.load(engine, found, self.world)


def kinds(world: World, room: Path) -> dict[str, Any]:
    """Losses, and sums of the checkpoint at the end, of unbroken runs."""
    lab, done = Lab(world, room), {}
    for name, zero in {"memory": MEMORY, "host": CPU, "drive": DRIVE, "pipelined": PIPELINED}.items():
        engine = lab.engine(zero)
        done[name] = lab.steps(engine, range(STEPS)), lab.save(engine, name, STEPS)
    return done


def restarts(world: World, room: Path) -> dict[str, Any]:
    """As `kinds`, of runs that go on after each step, with new engines that began from other weights."""
    lab, done = Lab(world, room), {}
    for precision in ("bf16", "fp32"):
        roads = {
            "unbroken": [PIPELINED],
            "restarted": [DRIVE, PIPELINED, DRIVE],
            "by way of memory": [DRIVE, MEMORY, DRIVE],
        }
        for road, zeros in roads.items():
            name, losses, each = f"{precision} {road}", [], STEPS // len(zeros)
            for n, zero in enumerate(zeros):
                engine = lab.engine(zero, seed=n, bf16=precision == "bf16")
                if n:
                    lab.load(engine, name)
                losses += lab.steps(engine, range(n * each, (n + 1) * each))
                sums = lab.save(engine, name, (n + 1) * each)
            done[name] = losses, sums
    return done


def within(world: World, room: Path) -> dict[str, Any]:
    """What is asked of an engine between gradients and update, a refused step, and one that goes back."""
    lab, done = Lab(world, room), {}
    for name, zero in {"host": CPU, "drive": DRIVE}.items():
        engine = lab.engine(zero, clip=1.0)
        gate = Gate(engine)
        first = lab.save(engine, name, 1)  # moments that no step has made
        told = []
        for step in range(4):
            told.append(observed(world, engine, gate, step))
            if step == 2:
                lab.load(engine, name)
        done[name] = told, first, lab.save(engine, name, 4)
    return done


def observed(world: World, engine: deepspeed.DeepSpeedEngine, gate: Gate, step: int) -> list[Any]:
    """Gradient norms, and how far the step moved the weights. Step 1 is refused."""
    told: list[Any] = []

    def admit(norm: float) -> bool:
        told.extend([norm, norms_by_module(engine.module.named_parameters()), Move(engine)])
        return step != 1

    engine.backward(engine(torch.ones(2, 16) * (1 + step + world.rank)).square().sum())
    gate.step(admit)
    norm, norms, move = told
    return [norm, norms, all_sum(world, *move.squares())]


def saved_in_parts(world: World, room: Path) -> dict[str, Any]:
    """Of a state on a drive: bytes that stand in no file of it, and what two Savers made of a later step."""
    lab = Lab(world, room)
    engine = lab.engine(DRIVE)
    lab.steps(engine, range(2))
    trained = [f for f in held(engine).fragments if not f.frozen]
    files = mapped_files(room / "drive")
    in_memory = [f for f in trained if not any(a <= f.values.data_ptr() < b for a, b in files)]
    wanted = lab.save(engine, "at once", 2)
    found = {}
    for name, staging in {"plain": None, "staged": room / "staging"}.items():
        saver = saving.Saver(engine, room / name, world, keep=2, in_background=True, staging=staging)
        saver.begin(TrainState(step=2), {})
        waits = not saver.in_background
        if waits:
            saver.finish()
        lab.steps(engine, range(2, 3))
        saver.finish()
        saver.abandon()
        path = checkpoint.directory_of(room / name, 2)
        found[name] = waits, json.loads((path / checkpoint.COMPLETE).read_text())["tensors"] == wanted
        lab.load(engine, "at once")
    with (room / "drive" / f"fovea-{world.rank}.lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return {
        "in memory": sum(f.values.nbytes for f in in_memory),
        "all": sum(f.values.nbytes for f in trained),
        "found": found,
        "on a drive": [on_a_drive(engine), on_a_drive(lab.engine(CPU))],
    }


def mapped_files(directory: Path) -> list[tuple[int, int]]:
    """Addresses of this process at which files of `directory` are mapped."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [words[0].split("-") for words in lines if words[-1].startswith(str(directory))]
    return [(int(a, 16), int(b, 16)) for a, b in spans]


def everything(world: World, room: Path) -> dict[str, Any]:
    without_kernel()
    return {case.__name__: case(world, room) for case in (kinds, restarts, within, saved_in_parts)}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    room = tmp_path_factory.mktemp("swapped")
    (room / "drive").mkdir()
    return on_ranks(everything, room)


def check_kinds(done: dict[str, Any]) -> None:
    assert done["memory"] == done["host"] == done["drive"] == done["pipelined"]


def check_restarts(done: dict[str, Any]) -> None:
    for precision in ("bf16", "fp32"):
        unbroken = done[f"{precision} unbroken"]
        assert unbroken == done[f"{precision} restarted"] == done[f"{precision} by way of memory"]


def test_steps_and_checkpoints_on_a_drive_are_those_in_memory_bit_by_bit(done):
    check_kinds(done[0]["kinds"])


def test_a_restart_on_a_drive_or_by_way_of_memory_changes_no_bit(done):
    check_restarts(done[0]["restarts"])


def test_norms_moves_refused_steps_and_going_back_are_those_in_the_host_s_memory(done):
    host, drive = (done[0]["within"][name] for name in ("host", "drive"))
    assert host == drive
    assert drive[1] != drive[2]


def test_a_checkpoint_of_a_drive_is_read_from_its_files_before_training_goes_on(done):
    for rank in done:
        seen = rank["saved_in_parts"]
        assert seen["on a drive"] == [True, False]
        assert 0 < seen["in memory"] < 0.01 * seen["all"]
        assert seen["found"] == {"plain": (True, True), "staged": (False, True)}


def test_a_folder_of_a_drive_is_one_run_s_until_it_ends(tmp_path):
    with (tmp_path / "fovea-0.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(PreflightError, match=r"another run swaps into .*\n.*Name another folder"):
            claim(str(tmp_path), 0)
        claim(str(tmp_path), 1)
    claim(str(tmp_path), 0)
    with (tmp_path / "fovea-0.lock").open("a") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def by_the_kernel(world: World, room: Path) -> list[dict[str, Any]]:
    return [kinds(world, room), restarts(world, room)]


@pytest.fixture(scope="module")
def kernel():
    if not (Path(_get_build_directory("async_io", verbose=False)) / "async_io.so").exists():
        pytest.skip("DeepSpeed's kernel async_io is not built; ds_configs/README.md says how")


def test_deepspeed_s_own_kernel_does_the_same(kernel, tmp_path):
    (tmp_path / "drive").mkdir()
    of_kinds, of_restarts = on_ranks(by_the_kernel, tmp_path)[0]
    check_kinds(of_kinds)
    check_restarts(of_restarts)


LARGE_CONNECTOR = (
    "model.connector={kind: perceiver, latents: 4, depth: 6, heads: 16, kv_heads: 16, head_dim: 64}"
)
"""Above 1 MiB a rank, so that DeepSpeed swaps it."""


def test_a_stage_goes_on_with_the_file_that_ships_as_in_the_host_s_memory(kernel, run_dir, fovea, metrics):
    page = json.loads(Path("ds_configs/zero3-nvme.json").read_text())
    drive = page["zero_optimization"]["offload_optimizer"] | {"nvme_path": str(run_dir / "drive")}
    (run_dir / "drive").mkdir()
    losses = []
    for offload, attempts in ((CPU["offload_optimizer"], [[]]), (drive, [["--faults", "kill:1@2"], []])):
        page["zero_optimization"]["offload_optimizer"] = offload
        (run_dir / "mine.json").write_text(json.dumps(page))
        for faults in attempts:
            done = fovea(
                "train", run_dir / "recipe.yaml", "--stage", "align", "--run", run_dir, "--nproc", 2, *faults,
                "stages.align.steps=3", "stages.align.checkpoint_every=1", LARGE_CONNECTOR,
                f"stages.align.ds_config={run_dir / 'mine.json'}",
            )  # fmt: skip
            assert (done.returncode == 0) == (not faults), done.stderr
        losses.append([m["loss"] for m in metrics(run_dir / "align")])
        shutil.rmtree(run_dir / "align")
    assert losses[0] == losses[1]
    assert [*(run_dir / "drive").rglob("*exp_avg*")]
