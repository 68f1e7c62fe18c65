"""A Fovea checkpoint on this machine behind the same door as any endpoint: a server in a process of its own.

So the build needs no torch, and a build of several workers holds one model.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.build.synthesize.source import SyntheticSource
from data_pipeline.errors import ConfigError, PreflightError

_END_S = 10.0


@contextmanager
def local_endpoints(sources: Sequence[Any], root: Path) -> Iterator[dict[str, str]]:
    """Base URLs of the checkpoints that `sources` name, by source; equal checkpoints share a server.

    Raises ConfigError where there is no checkpoint, PreflightError where its server does not start.
    """
    named = {
        s.name: (root / s.checkpoint).resolve()
        for s in sources
        if isinstance(s, SyntheticSource) and s.checkpoint is not None
    }
    with ExitStack() as stack:
        urls = {c: stack.enter_context(_served(c)) for c in dict.fromkeys(named.values())}
        yield {name: urls[c] for name, c in named.items()}


@contextmanager
def _served(checkpoint: Path) -> Iterator[str]:
    if not checkpoint.is_dir():
        raise ConfigError(
            f"no checkpoint at {checkpoint}: expected RUN/STAGE or RUN/STAGE/checkpoints/step_N"
        )
    command = [sys.executable, "-m", "trainer.serve", str(checkpoint), "--port", "0"]
    with tempfile.TemporaryFile() as errors:
        # It ends with its standard input: a build that is killed leaves no server behind.
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        try:
            assert server.stdin is not None
            assert server.stdout is not None
            # Libraries may write above it; the end of the stream means that it did not start.
            lines = (line.decode(errors="replace").strip() for line in server.stdout)
            url = next((line for line in lines if line.startswith("http://127.0.0.1:")), None)
            if url is None:
                server.wait(_END_S)
                errors.seek(0)
                last = errors.read()[-600:].decode(errors="replace").strip()
                raise PreflightError(f"the server of {checkpoint} did not start:\n  {last}")
            yield url
        finally:
            _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    for pipe in (server.stdin, server.stdout):
        if pipe is not None:
            pipe.close()
    try:
        server.wait(_END_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
