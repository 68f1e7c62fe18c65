"""How worker processes start: from a server that has loaded what they need, and nothing of this process."""

import multiprocessing
import multiprocessing.forkserver
import signal
from multiprocessing.context import ForkServerContext

REQUESTS = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
"""What a terminal or a batch system sends to all processes of a job. A run that was asked to stop still needs
its workers; they end with it."""


def forkserver() -> ForkServerContext:
    """Not forked from here: this process may hold threads (reading, collectives) that a copy waits for.

    The server and what it starts leave `REQUESTS` to the process that asked for them.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_pipeline.stream.making"])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def end_on_request() -> None:
    """In a worker whose parent ends it by SIGTERM, as process pools do."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
