"""What a node gives its processes: cores, shared memory, open files, locked memory, a scratch directory."""

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trainer.config import Recipe
from trainer.doctor.finding import Finding, gib

_SHM = Path("/dev/shm")
_INFINIBAND = Path("/sys/class/infiniband")
_SCRATCH_BYTES = 2**30
_FILES, _FILES_OF_RANK, _FILES_OF_WORKER = 512, 8, 64
"""Shards and libraries; sockets to another rank; batches that a worker shares by file descriptors."""


def shared_memory(recipe: Recipe | None, ranks_here: int, shm: Path = _SHM) -> Finding:
    """/dev/shm against the finished batches that worker processes hand over in it."""
    if not shm.is_dir():
        return Finding("shared memory", "fail", f"no {shm}", f"mount it: mount -t tmpfs tmpfs {shm}")
    free = shutil.disk_usage(shm).free
    workers = recipe.data.workers if recipe else 0
    need = ranks_here * int(recipe.data.prefetch_gib * 2**30) if recipe and workers else 2**26
    said = f"{gib(free)} free in {shm}"
    if free < need:
        return Finding(
            "shared memory",
            "fail",
            f"{said}, {ranks_here} ranks with {workers} workers each need {gib(need)}",
            "raise it (docker: --shm-size; a mount: -o remount,size=), or lower data.prefetch_gib, or set "
            "data.workers to 0",
        )
    return Finding("shared memory", "ok", f"{said}, {gib(need)} needed" if workers else said)


def cores(recipe: Recipe | None, ranks_here: int, bound: int | None = None) -> Finding:
    """Of this rank: those that it is bound to, or its share of the node's; against itself and its workers."""
    bound = len(os.sched_getaffinity(0)) if bound is None else bound
    all_ = os.cpu_count() or 1
    mine = bound if bound < all_ else all_ / ranks_here
    workers = recipe.data.workers if recipe else 0
    said = f"{mine:.3g} of {all_} for each rank"
    if workers and mine < 1 + workers:
        return Finding(
            "cores",
            "warn",
            f"{said}, which has {workers} workers beside itself",
            "srun --cpus-per-task, as slurm/env.sh shares the cores of a node out; or fewer data.workers",
        )
    return Finding("cores", "ok", said)


def open_files(recipe: Recipe | None, ranks: int, limit: int | None = None) -> Finding:
    """`ulimit -n` of this process against files, sockets to other ranks, and batches of workers."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    workers = recipe.data.workers if recipe else 0
    need = _FILES + _FILES_OF_RANK * ranks + _FILES_OF_WORKER * workers
    if limit != resource.RLIM_INFINITY and limit < need:
        return Finding(
            "open files",
            "warn",
            f"ulimit -n is {limit:,}; {ranks:,} ranks with {workers} workers each may need {need:,}",
            "ulimit -n 65536 in slurm/env.sh, or have the hard limit raised (limits.conf; slurmd: "
            "LimitNOFILE)",
        )
    shown = "unlimited" if limit == resource.RLIM_INFINITY else f"{limit:,}"
    return Finding("open files", "ok", f"ulimit -n {shown}")


def locked_memory(limit: int | None = None, infiniband: Path = _INFINIBAND) -> Finding:
    """`ulimit -l`: InfiniBand registers the memory that it sends."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] if limit is None else limit
    cards = sorted(os.listdir(infiniband)) if infiniband.is_dir() else []
    shown = "unlimited" if limit == resource.RLIM_INFINITY else gib(limit)
    if cards and limit != resource.RLIM_INFINITY:
        return Finding(
            "locked memory",
            "warn",
            f"ulimit -l is {shown}, and there is InfiniBand ({', '.join(cards)})",
            "ulimit -l unlimited; under Slurm LimitMEMLOCK=infinity of slurmd, or "
            "PropagateResourceLimitsExcept=MEMLOCK",
        )
    return Finding("locked memory", "ok", f"ulimit -l {shown}, {'InfiniBand' if cards else 'no InfiniBand'}")


def scratch(directory: Path | None = None) -> Iterator[Finding]:
    """The node's own directory for what passes: written to, with room."""
    where = directory or Path(tempfile.gettempdir())
    try:
        with tempfile.NamedTemporaryFile(dir=where) as f:
            f.write(b"\0" * 4096)
            f.flush()
        free = shutil.disk_usage(where).free
    except OSError as e:
        yield Finding("scratch", "fail", f"{where}: {e.strerror}", "set SCRATCH in slurm/env.sh, or TMPDIR")
        return
    if free < _SCRATCH_BYTES:
        fix = "clear it, or set SCRATCH in slurm/env.sh, or TMPDIR, to a larger one"
        yield Finding("scratch", "warn", f"{gib(free)} free in {where}", fix)
    else:
        yield Finding("scratch", "ok", f"{gib(free)} free in {where}")
