"""How long training stands still for a checkpoint: written at once, and beside the steps.

    python tests/benchmarks/bench_checkpoint.py [--megabytes 240] [--rounds 3] [--out FILE]

Two gloo ranks, ZeRO-3 in bf16, linear layers of which all are trained: `megabytes` of fp32 weights and
moments. In one run, by turns: a save that is waited for, and one that is written while steps are taken; its
stall is the copy and every wait for it, to the commit. Figures: seconds of rank 0, the median of the rounds
after a first one that is not counted. `ratio` is stall / synchronous save; the bar is 0.2.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "processes"))

from ranks import on_ranks
from trainer.distributed import World
from trainer.engine.initialize import initialize
from trainer.engine.saving import Saver
from trainer.engine.state import TrainState

RANKS, LAYERS, BYTES = 2, 8, 12
"""`BYTES` of a weight that is trained: itself and two moments, in fp32."""


def measure(world: World, room: Path, megabytes: int, rounds: int) -> dict[str, Any]:
    width = int((megabytes * 1e6 / BYTES / LAYERS) ** 0.5)
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS)))
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3},
        "zero_allow_untested_optimizer": True,
    }
    engine = initialize(model, [{"params": [*model.parameters()]}], config, lr=1e-4, betas=(0.9, 0.95))
    savers = {b: Saver(engine, room, world, keep=2, in_background=b) for b in (False, True)}
    step, nbytes, seconds = 0, 0, {"synchronous": [], "stall": [], "flush": [], "step": []}

    def take_a_step() -> float:
        began = time.monotonic()
        engine.backward(engine(torch.ones(1, width, dtype=torch.bfloat16)).sum())
        engine.step()
        return time.monotonic() - began

    take_a_step()
    for round_ in range(rounds + 1):
        for in_background, saver in savers.items():
            step += 1
            saver.begin(TrainState(step=step), {})
            saved = None if in_background else saver.finish()
            while saved is None:
                seconds["step"].append(take_a_step())
                saved = saver.poll()
            nbytes, stall = saved.nbytes, saver.stall()
            if round_:
                seconds["stall" if in_background else "synchronous"].append(stall)
                if in_background:
                    seconds["flush"].append(saved.seconds)
    found = {name: round(statistics.median(values), 4) for name, values in seconds.items()}
    return {
        "megabytes": round(nbytes / 1e6),
        "ranks": world.size,
        "rounds": rounds,
        "seconds": found,
        "ratio": round(found["stall"] / found["synchronous"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        # By its module: a rank imports it anew.
        sys.path.insert(0, str(Path(__file__).parent))
        bench = __import__(Path(__file__).stem)
        result = on_ranks(bench.measure, Path(room), args.megabytes, args.rounds, ranks=RANKS, seconds=900)[0]
    text = json.dumps(result, indent=1)
    sys.stdout.write(text + "\n")
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
