"""How worker processes start: from a server that has loaded what they need, and nothing of this process."""

import multiprocessing
from multiprocessing.context import ForkServerContext


def forkserver() -> ForkServerContext:
    """Not forked from here: this process may hold threads (reading, collectives) that a copy waits for."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_pipeline.stream.making"])
    return context
