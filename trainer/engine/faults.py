"""Faults on purpose, for rehearsals: `--faults kill:1@7,enospc:0@ckpt3` kills rank 1 in step 7, and rank 0's
disk is full as it writes the third checkpoint."""

import ctypes
import errno
import math
import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.errors import ConfigError, nearest

KINDS = {
    "kill": signal.SIGKILL,
    "term": signal.SIGTERM,
    "int": signal.SIGINT,
    "usr1": signal.SIGUSR1,
    "stop": signal.SIGSTOP,
    "abort": signal.SIGABRT,
}
"""What a rank does to itself: it sends itself this signal, between its gradients and its update, or as it
begins to write a checkpoint."""

HANGS = ("hang", "gil")
"""There it sleeps for ever; `gil`: and keeps the interpreter's lock, so that no thread of it runs."""

SLOW = "slow"
"""From that step on each step's own work takes three times as long."""

OOM = "oom"
"""It asks for more memory than any machine has."""

FULL = "enospc"
"""Its disk is full as it writes the checkpoint of that step."""

AT_SAVES = (*KINDS, FULL)
"""What may strike at a checkpoint."""

FACTORS = {"nan": math.nan, "spike": 1e5}
"""What a rank multiplies its gradients with in that step."""


@dataclass(frozen=True)
class Fault:
    """`kind` strikes `rank` in step `step`, counted from 1; where it is `saving`, as it begins to write the
    checkpoint of that step."""

    kind: str
    rank: int
    step: int
    saving: bool = False


def parse_faults(text: str, *, ranks: int, steps: int, checkpoint_every: int) -> tuple[Fault, ...]:
    """The faults for a stage of so many `steps` on so many `ranks`, with a checkpoint every so many steps.

    Raises ConfigError where `text` is no list of KIND:RANK@STEP and KIND:RANK@ckptN, or a fault could never
    strike.
    """
    return tuple(_fault(word, ranks, steps, checkpoint_every) for word in filter(None, text.split(",")))


def _fault(word: str, ranks: int, steps: int, every: int) -> Fault:
    match = re.fullmatch(r"(\w+):(\d+)@(ckpt)?(\d+)", word)
    if match is None:
        raise ConfigError(
            f"--faults {word}: KIND:RANK@STEP or KIND:RANK@ckptN is expected, as in kill:1@7, enospc:0@ckpt3."
        )
    kind, rank, at = match.group(1), int(match.group(2)), int(match.group(4))
    if kind not in (kinds := (*KINDS, *HANGS, SLOW, OOM, FULL, *FACTORS)):
        raise ConfigError(f"--faults {word}: the kinds are {', '.join(kinds)}{nearest(kind, kinds)}")
    if rank >= ranks:
        raise ConfigError(f"--faults {word}: there is no rank {rank}; the ranks are 0 to {ranks - 1}.")
    if match.group(3) is None:
        if not 1 <= at <= steps:
            raise ConfigError(f"--faults {word}: there is no step {at}; the stage has steps 1 to {steps}.")
        return Fault(kind, rank, at, saving=kind == FULL)
    if kind not in AT_SAVES:
        raise ConfigError(f"--faults {word}: only {', '.join(AT_SAVES)} strike at a checkpoint.")
    saves = -(-steps // every)  # the last step is saved as well
    if not 1 <= at <= saves:
        raise ConfigError(
            f"--faults {word}: there is no checkpoint {at}; the stage has {saves}, one every {every} of its "
            f"{steps} steps."
        )
    return Fault(kind, rank, min(at * every, steps), saving=True)


def strike(faults: Sequence[Fault], rank: int, step: int, worked_s: float) -> None:
    """Do what was asked for this rank in this step, in which its own work took `worked_s` so far."""
    for fault in faults:
        if fault.rank == rank and fault.kind == SLOW and fault.step <= step:
            time.sleep(2 * worked_s)
        if (fault.rank, fault.step, fault.saving) != (rank, step, False):
            continue
        if fault.kind in HANGS:
            sleep = ctypes.PyDLL(None).sleep if fault.kind == "gil" else time.sleep
            while True:
                sleep(3600)
        if fault.kind == OOM:
            bytearray(2**60)
        if fault.kind in KINDS:
            os.kill(os.getpid(), KINDS[fault.kind])


def strike_save(faults: Sequence[Fault], rank: int, step: int) -> None:
    """Do what was asked for this rank and the checkpoint of this step. Raises the error of a full disk where
    it was that."""
    for fault in faults:
        if (fault.rank, fault.step, fault.saving) == (rank, step, True):
            if fault.kind == FULL:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.kill(os.getpid(), KINDS[fault.kind])


def factor(faults: Sequence[Fault], rank: int, step: int) -> float:
    """What this rank's gradients of this step are multiplied with; 1 where nothing was asked."""
    return math.prod(FACTORS.get(f.kind, 1.0) for f in faults if (f.rank, f.step) == (rank, step))
