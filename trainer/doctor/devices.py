"""The GPUs of a node: that torch sees those that the driver has, whole and free."""

import csv
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.config import Recipe
from trainer.doctor.finding import Finding, gib
from trainer.engine.ds_config import read_ds_config

_CONTROL = Path("/dev/nvidiactl")
_FREE = 0.9
"""Share of a GPU's memory that is free where nobody else computes on it."""

_QUERY = "index,name,driver_version,memory.total,memory.free,ecc.errors.uncorrected.volatile.total"
_ASKED_S = 20


@dataclass(frozen=True)
class Gpu:
    """A line of nvidia-smi. Memory in MiB; `ecc`: uncorrected errors since the driver was loaded, None where
    the card does not count them."""

    index: int
    name: str
    driver: str
    total: int
    free: int
    ecc: int | None


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """Of `nvidia-smi --query-gpu`, as CSV without heads and units. Raises ValueError for anything else."""
    found = []
    for row in csv.reader(text.strip().splitlines(), skipinitialspace=True):
        index, name, driver, total, free, ecc = row
        count = int(ecc) if ecc.isdecimal() else None
        found.append(Gpu(int(index), name, driver, int(total), int(free), count))
    return tuple(found)


def seen_by_driver() -> tuple[Gpu, ...]:
    """None where there is no nvidia-smi. Raises RuntimeError where it fails, ValueError for what it says."""
    if shutil.which("nvidia-smi") is None:
        return ()
    asked = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=_ASKED_S, check=False)
    if done.returncode:
        raise RuntimeError(f"nvidia-smi: {(done.stderr or done.stdout).strip()}")
    return parse_gpus(done.stdout)


def facts() -> dict[str, str]:
    """What the nodes of one job should have alike."""
    if not torch.cuda.is_available():
        return {"gpus": "none"}
    names = [torch.cuda.get_device_name(d) for d in range(torch.cuda.device_count())]
    return {"gpus": " and ".join(f"{names.count(n)} x {n}" for n in dict.fromkeys(names))}


def needs_gpu(recipe: Recipe) -> str:
    """What of the recipe runs on no CPU; empty where all does. Raises ConfigError as `read_ds_config`."""
    needs = [f"stage {s.name} takes Liger's kernels" for s in recipe.stages if s.kernels == "liger"]
    if recipe.model.moe is not None and recipe.model.moe.backend == "megablocks":
        needs.append("model.moe.backend is megablocks")
    for stage in recipe.stages:
        zero = read_ds_config(stage.ds_config).get("zero_optimization", {})
        if zero.get("zero_quantized_weights") or zero.get("zero_quantized_gradients"):
            needs.append(f"ds_config {stage.ds_config} quantises what it sends")
    return ", ".join(dict.fromkeys(needs))


def gpus(
    local_rank: int, ranks_here: int, needed_by: str = "", control: Path = _CONTROL
) -> Iterator[Finding]:
    """This rank's GPU and those beside it. `needed_by`: what of the recipe does not run on CPUs."""
    if torch.cuda.is_available():
        yield from _of_rank(local_rank, ranks_here)
        yield from ecc_errors(seen_by_driver())
        return
    there = seen_by_driver() if control.exists() else ()
    if control.exists() or there:
        driver = f", driver {there[0].driver}" if there else ""
        built = torch.version.cuda
        yield Finding(
            "gpu",
            "fail",
            f"the driver has {len(there) or 'some'} GPUs{driver}; torch {torch.__version__} sees none",
            "raise the driver to what this torch's CUDA needs, and look at CUDA_VISIBLE_DEVICES"
            if built
            else "this torch is built for CPUs: install one for CUDA",
        )
    elif needed_by:
        fix = "ask for GPUs: SBATCH_GPUS_PER_NODE in slurm/env.sh; or run this on a node that has them"
        yield Finding("gpu", "warn", f"none here; {needed_by}", fix)
    else:
        yield Finding("gpu", "ok", "none; ranks compute on CPUs")


def _of_rank(local_rank: int, ranks_here: int) -> Iterator[Finding]:
    count = torch.cuda.device_count()
    if local_rank >= count:
        yield Finding(
            "gpu",
            "fail",
            f"rank {local_rank} of this node has no GPU: torch sees {count}",
            "start as many ranks on a node as it has GPUs (RANKS_PER_NODE), and let each see all of them "
            "(no --gpus-per-task)",
        )
        return
    name = torch.cuda.get_device_name(local_rank)
    free, total = torch.cuda.mem_get_info(local_rank)
    said = f"{count} x {name}, CUDA {torch.version.cuda}"
    if ranks_here < count:
        idle = f"{said}; {ranks_here} ranks on this node leave {count - ranks_here} idle"
        yield Finding("gpu", "warn", idle, "start a rank for each GPU: RANKS_PER_NODE, or --nproc")
    else:
        yield Finding("gpu", "ok", said)
    if free < _FREE * total:
        yield Finding(
            "gpu memory",
            "warn",
            f"{gib(free)} of {gib(total)} free on GPU {local_rank}: somebody else computes on it",
            "nvidia-smi names the processes; end them, or drain the node",
        )
    else:
        yield Finding("gpu memory", "ok", f"{gib(free)} of {gib(total)} free")


def ecc_errors(there: tuple[Gpu, ...]) -> Iterator[Finding]:
    """Memory errors that no code could correct: such a card gives wrong numbers, or stops."""
    if bad := [f"GPU {g.index}: {g.ecc}" for g in there if g.ecc]:
        said = f"uncorrected memory errors: {', '.join(bad)}"
        yield Finding("gpu errors", "fail", said, "drain the node, and reset or replace the card")
    elif there:
        yield Finding("gpu errors", "ok", f"no uncorrected memory errors, driver {there[0].driver}")
