"""Signals that ask to stop: what each becomes, and how a parent hands them to the processes it waits for."""

import signal
import subprocess
import threading
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


_AGAIN_S = 0.05
"""After so many seconds a request that came at a bad moment is made again."""


class _Asked(BaseException):
    """What a handler raises. No Exception: much of what is imported goes on after any of those."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def abandoning(what: str) -> Iterator[None]:
    """A signal ends what stands inside at once, by an error with the right code; an import is finished first.
    For work that leaves nothing half done: its results are committed at its end."""
    waiting, timers = False, []

    def ask_again(number: int) -> None:
        nonlocal waiting
        waiting = False
        signal.pthread_kill(threading.main_thread().ident or 0, number)

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal waiting
        if _is_importing(frame):
            if not waiting:
                waiting = True
                timers.append(threading.Timer(_AGAIN_S, ask_again, [number]))
                timers[-1].start()
            return
        for s in ASKING:
            signal.signal(s, signal.SIG_IGN)  # the same request may come twice: from a parent, from a group
        raise _Asked(number)

    before = {s: signal.signal(s, end) for s in ASKING}
    try:
        try:
            yield
        finally:
            for timer in timers:
                timer.cancel()
                timer.join()
            for s, handler in before.items():
                signal.signal(s, handler)
    except _Asked as asked:
        raise stopped_by(asked.number, f"{what} was given up") from None


def _is_importing(frame: FrameType | None) -> bool:
    """There an error may be lost: the interpreter goes on after one in the callback of an import's lock."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


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
