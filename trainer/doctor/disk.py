"""Room in the run directory, against the checkpoints to come."""

import os
from collections.abc import Iterator
from pathlib import Path

from trainer.doctor.finding import Finding, gib

_LITTLE = 5 * 2**30
"""Bytes that should be free where the need is not known."""

_FEW_FILES = 10_000


def standing(run: Path) -> Path:
    """The run directory, or the nearest one above it that exists."""
    return next(p for p in (run.absolute(), *run.absolute().parents) if p.is_dir())


def free_space(run: Path, need: int | None) -> Iterator[Finding]:
    """Bytes and inodes there. `need`: of the checkpoints to come, where it is known."""
    disk = os.statvfs(standing(run))
    free, asked = disk.f_bavail * disk.f_frsize, _LITTLE if need is None else need
    said = f"{gib(free)} free, {'need not known' if need is None else f'checkpoints take up to {gib(need)}'}"
    if free < asked:
        fix = "make room, lower keep_checkpoints, or take another --run directory"
        yield Finding("disk", "warn" if need is None else "fail", said, fix)
    else:
        yield Finding("disk", "ok", said)
    if disk.f_files:  # some file systems count none
        few = disk.f_favail < _FEW_FILES
        fix = "delete what is not needed, or have the number of inodes raised" if few else ""
        yield Finding("inodes", "warn" if few else "ok", f"{disk.f_favail:,} free", fix)
