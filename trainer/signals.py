"""Signals that ask to stop: what each becomes, and how a parent hands them to the processes it waits for."""

import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import BinaryIO

from data_pipeline.errors import FoveaError, PreemptedError, TransientError

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""SIGUSR1 is the usual warning before a batch system's time limit (`--signal=USR1@300`)."""

SAME_S = 1.0
"""A Ctrl-C reaches a process from the terminal and from its launcher: within so many seconds it is one."""


def stopped_by(number: int, what: str) -> FoveaError:
    """The error that ends a process that was asked to stop: 143, from the keyboard 130, to be requeued 75."""
    name = signal.Signals(number).name
    if number == signal.SIGUSR1:
        return TransientError(f"{what}, asked by {name}.\n  The same command goes on.")
    error = PreemptedError(f"{what}, asked by {name}.\n  The same command goes on.")
    if number == signal.SIGINT:
        error.exit_code = 130
    return error


@contextmanager
def abandoning(what: str) -> Iterator[None]:
    """A signal ends what stands inside at once, by an error with the right code. For work that leaves
    nothing half done: its results are committed at its end."""

    def end(number: int, _frame: FrameType | None) -> None:
        for s in ASKING:
            signal.signal(s, signal.SIG_IGN)  # the same request may come twice: from a parent, from a group
        raise stopped_by(number, f"{what} was given up")

    before = {s: signal.signal(s, end) for s in ASKING}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


@contextmanager
def forwarding(
    processes: Sequence[subprocess.Popen[bytes]], relayed: Sequence[int] = ASKING
) -> Iterator[list[int]]:
    """Hand each signal to the processes once; gives the list of those that came, in their order.

    A second Ctrl-C, later than `SAME_S`, is handed on too. `relayed`: those that are handed on at all.
    """
    seen: list[int] = []
    last_interrupt = 0.0

    def forward(number: int, _frame: FrameType | None) -> None:
        nonlocal last_interrupt
        again = number == signal.SIGINT and time.monotonic() - last_interrupt > SAME_S
        if number in seen and not again:
            return
        last_interrupt = time.monotonic() if number == signal.SIGINT else last_interrupt
        seen.append(number)
        for process in processes if number in relayed else ():
            if process.poll() is None:
                process.send_signal(number)

    before = {s: signal.signal(s, forward) for s in ASKING}
    try:
        yield seen
    finally:
        for s, handler in before.items():
            # Asked once, this process ends with what became of it; asked again, it must not die of it.
            signal.signal(s, signal.SIG_IGN if seen else handler)


def run_process(
    argv: Sequence[str], relayed: Sequence[int] = ASKING, output: BinaryIO | None = None
) -> tuple[int, list[int]]:
    """Run a process to its end: its exit code, and the signals that came meanwhile."""
    running: list[subprocess.Popen[bytes]] = []
    with forwarding(running, relayed) as asked:
        running.append(subprocess.Popen(argv, stdout=output, stderr=output))
        for number in asked:  # what came before it was there to be told
            if number in relayed:
                running[0].send_signal(number)
        return running[0].wait(), asked
