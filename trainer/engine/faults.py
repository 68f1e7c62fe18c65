"""Faults on purpose, for rehearsals: `--faults kill:1@7,term:0@9` kills rank 1 in step 7, and so on."""

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
"""What a rank does to itself: it sends itself this signal, between its gradients and its update."""

HANGS = ("hang", "gil")
"""There it sleeps for ever; `gil`: and keeps the interpreter's lock, so that no thread of it runs."""

SLOW = "slow"
"""From that step on each step's own work takes three times as long."""

OOM = "oom"
"""It asks for more memory than any machine has."""

FULL = "enospc"
"""Its disk is full as it writes the checkpoint of that step."""

FACTORS = {"nan": math.nan, "spike": 1e5}
"""What a rank multiplies its gradients with in that step."""


@dataclass(frozen=True)
class Fault:
    """`kind` strikes `rank` in step `step`, counted from 1."""

    kind: str
    rank: int
    step: int


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Raises ConfigError where `text` is no list of KIND:RANK@STEP."""
    faults = []
    for word in filter(None, text.split(",")):
        match = re.fullmatch(r"(\w+):(\d+)@(\d+)", word)
        if match is None:
            raise ConfigError(f"--faults {word}: KIND:RANK@STEP is expected, as in kill:1@7.")
        kind = match.group(1)
        if kind not in (kinds := (*KINDS, *HANGS, SLOW, OOM, FULL, *FACTORS)):
            raise ConfigError(f"--faults {word}: the kinds are {', '.join(kinds)}{nearest(kind, kinds)}.")
        faults.append(Fault(kind, int(match.group(2)), int(match.group(3))))
    return tuple(faults)


def strike(faults: Sequence[Fault], rank: int, step: int, worked_s: float) -> None:
    """Do what was asked for this rank in this step, in which its own work took `worked_s` so far."""
    for fault in faults:
        if fault.rank == rank and fault.kind == SLOW and fault.step <= step:
            time.sleep(2 * worked_s)
        if (fault.rank, fault.step) != (rank, step):
            continue
        if fault.kind in HANGS:
            sleep = ctypes.PyDLL(None).sleep if fault.kind == "gil" else time.sleep
            while True:
                sleep(3600)
        if fault.kind == OOM:
            bytearray(2**60)
        if fault.kind in KINDS:
            os.kill(os.getpid(), KINDS[fault.kind])


def refuse_write(faults: Sequence[Fault], rank: int, step: int) -> None:
    """Raises the error of a full disk where that was asked for this rank and the checkpoint of this step."""
    if Fault(FULL, rank, step) in faults:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def factor(faults: Sequence[Fault], rank: int, step: int) -> float:
    """What this rank's gradients of this step are multiplied with; 1 where nothing was asked."""
    return math.prod(FACTORS.get(f.kind, 1.0) for f in faults if (f.rank, f.step) == (rank, step))
