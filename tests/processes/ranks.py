"""Real ranks for tests: one function on each of several processes, joined by gloo, or by NCCL on GPUs."""

import importlib.util
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import deepspeed
import torch
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

from trainer.distributed import close_world, init_world
from trainer.launch import meeting_port

_SECONDS = "FOVEA_TEST_SECONDS"

# What ranks need takes each of them five seconds to import. On the CPU they are forked from one process that
# did so and nothing else; where there may be a GPU each begins by itself.
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["trainer.run", "peft", "deepspeed"])
_SPAWNED = multiprocessing.get_context("spawn")


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
    context = _FORKED if device == "cpu" else _SPAWNED
    with tempfile.TemporaryDirectory() as name, meeting_port() as port:
        room = Path(name)
        with (room / "call").open("wb") as f:
            pickle.dump((function.__code__.co_filename, function.__module__, function.__name__), f)
            pickle.dump(arguments, f)
        common = {
            "DS_ACCELERATOR": device,
            # What this process imports, a rank does too.
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(ranks),
            _SECONDS: str(seconds),
        }
        if device == "cpu":
            common["CUDA_VISIBLE_DEVICES"] = ""
        started: list[BaseProcess] = []
        try:
            with mock.patch.dict(os.environ, common):
                for rank in range(ranks):
                    env = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                    process = context.Process(target=_be_a_rank, args=(room, rank, env))
                    process.start()
                    started.append(process)
            codes = _wait(started, seconds)
        finally:
            for process in started:
                process.kill()
                process.join()
        logs = "\n\n".join(
            f"rank {r} ({'out of time' if code is None else code}):\n{(room / f'log{r}').read_text()[-3000:]}"
            for r, code in enumerate(codes)
        )
        assert codes == [0] * ranks, logs
        return [pickle.loads((room / f"result{rank}").read_bytes()) for rank in range(ranks)]


def _wait(started: Sequence[BaseProcess], seconds: float) -> list[int | None]:
    """Exit codes once all have ended, or one has failed: the others would wait for it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        codes = [process.exitcode for process in started]
        if None not in codes or any(codes):
            return codes
        time.sleep(0.05)
    return [process.exitcode for process in started]


def _be_a_rank(room: Path, rank: int, env: dict[str, str]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with (room / f"log{rank}").open("w") as log:
        for said in (sys.stdout, sys.stderr):
            said.flush()
            os.dup2(log.fileno(), said.fileno())
    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(1)
    # See trainer/engine/initialize.py; tests that call DeepSpeed themselves need it too.
    deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
    world = init_world(timeout_s=float(os.environ[_SECONDS]))
    with (room / "call").open("rb") as f:
        file, name, function = pickle.load(f)
        # By its file: pytest's modules have names that nothing imports.
        spec = importlib.util.spec_from_file_location(name, file)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        arguments = pickle.load(f)
    result = pickle.dumps(getattr(module, function)(world, *arguments))
    (room / f"result{rank}").write_bytes(result)
    torch.distributed.barrier()
    close_world()


def _end_with_parent() -> None:
    """A test that is killed leaves no ranks behind."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGKILL)
