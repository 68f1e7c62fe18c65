"""Real ranks for tests: one function on each of several processes, joined by gloo, or by NCCL on GPUs.

As a script it is one rank: `python ranks.py CALL RESULT`.
"""

import ctypes
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import deepspeed
import torch
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

from trainer.distributed import close_world, init_world
from trainer.launch import meeting_port

_SECONDS = "FOVEA_TEST_SECONDS"
_END_WITH_PARENT = 1
"""prctl's PR_SET_PDEATHSIG: a test that is killed leaves no ranks behind."""


def on_ranks(
    function: Callable[..., Any],
    *arguments: Any,
    ranks: int = 2,
    seconds: float = 600,
    device: Literal["cpu", "cuda"] = "cpu",
) -> list[Any]:
    """What `function(world, *arguments)` returns on each rank, in their order.

    The function stands at the top of its module; arguments and results are pickled. Each rank has one thread
    and its own import of that module; on the CPU it sees no GPU. Raises AssertionError with what every rank
    wrote where one of them fails or `seconds` are over; none of them outlives the call.
    """
    # A rank imports the function's module anew. Were it a script, it would start ranks itself, and they too.
    assert _SECONDS not in os.environ, "a rank starts no ranks"
    assert function.__module__ != "__main__", "call a function of a module, not of the script itself"
    with tempfile.TemporaryDirectory() as name, meeting_port() as port:
        room = Path(name)
        with (room / "call").open("wb") as f:
            pickle.dump((function.__code__.co_filename, function.__module__, function.__name__), f)
            pickle.dump(arguments, f)
        common = os.environ | {
            "DS_ACCELERATOR": device,
            "PYTHONPATH": os.pathsep.join(
                filter(None, sys.path)
            ),  # what this process imports, a rank does too
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(ranks),
            _SECONDS: str(seconds),
        }
        if device == "cpu":
            common["CUDA_VISIBLE_DEVICES"] = ""
        started: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(ranks):
                with (room / f"log{rank}").open("w") as log:
                    command = [sys.executable, __file__, str(room / "call"), str(room / f"result{rank}")]
                    env = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                    started.append(subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT))
            codes = _wait(started, seconds)
        finally:
            for process in started:
                process.kill()
                process.wait()
        logs = "\n\n".join(
            f"rank {r} ({'out of time' if code is None else code}):\n{(room / f'log{r}').read_text()[-3000:]}"
            for r, code in enumerate(codes)
        )
        assert codes == [0] * ranks, logs
        return [pickle.loads((room / f"result{rank}").read_bytes()) for rank in range(ranks)]


def _wait(started: list[subprocess.Popen[bytes]], seconds: float) -> list[int | None]:
    """Exit codes once all have ended, or one has failed: the others would wait for it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        codes = [process.poll() for process in started]
        if None not in codes or any(codes):
            return codes
        time.sleep(0.05)
    return [process.poll() for process in started]


def _be_a_rank(call: Path, result: Path) -> None:
    ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)
    torch.set_num_threads(1)
    # See trainer/engine/initialize.py; tests that call DeepSpeed themselves need it too.
    deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
    world = init_world(timeout_s=float(os.environ[_SECONDS]))
    with call.open("rb") as f:
        file, name, function = pickle.load(f)
        # By its file: pytest's modules have names that nothing imports.
        spec = importlib.util.spec_from_file_location(name, file)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        arguments = pickle.load(f)
    result.write_bytes(pickle.dumps(getattr(module, function)(world, *arguments)))
    torch.distributed.barrier()
    close_world()


if __name__ == "__main__":
    _be_a_rank(Path(sys.argv[1]), Path(sys.argv[2]))
