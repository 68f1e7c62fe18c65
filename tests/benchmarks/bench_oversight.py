"""What standing guard costs a step: the guard's verdict, the watchdog's marks and thread, the noted samples.

    python tests/benchmarks/bench_oversight.py RUN --stage align [key=value ...]

RUN holds a recipe, its data and its backbones (`fovea demo` makes one); it is copied. Two ranks train by
turns of a few steps with all of it and without; each turn's seconds of the processors are compared with those
of the turn beside it, and the median of the ratios is reported. What all ranks sum at a step is in both.
"""

import argparse
import importlib
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1] / "processes"))

from ranks import on_ranks
from trainer import loop
from trainer.config import load_recipe
from trainer.distributed import World, all_sum, noting_waits
from trainer.engine.oversight import Oversight
from trainer.engine.watchdog import Watch
from trainer.guarded import remembered, update
from trainer.loop import train_step
from trainer.run import Run, build_run


def turn(run: Run, oversight: Oversight, steps: int) -> tuple[float, float]:
    """(processor, wall) seconds of so many steps; the processor's are of both ranks."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(steps):
        train_step(run, oversight)
        oversight.compare(run.world, run.state.step, run.stage_dir, run.stage.watchdog)
    (both,) = all_sum(run.world, time.process_time() - cpu)
    return both, time.perf_counter() - wall


def guarded(run: Run, steps: int, watch: Watch) -> tuple[float, float]:
    modules = list(run.engine.module.modules())
    before = [set(m._forward_pre_hooks) for m in modules]
    oversight = Oversight(watch=watch)
    oversight.follow(run.engine.module)
    loop.update, loop.remembered = update, remembered
    try:
        with noting_waits(oversight.wait):
            return turn(run, oversight, steps)
    finally:
        for module, hooks in zip(modules, before, strict=True):
            for added in set(module._forward_pre_hooks) - hooks:
                del module._forward_pre_hooks[added]


def bare(run: Run, steps: int) -> tuple[float, float]:
    loop.update = lambda run, loss: (run.gate.step(lambda norm: True), None)
    loop.remembered = lambda run, *seen: run.state.guard
    return turn(run, Oversight(), steps)


def compare(
    world: World, run_dir: str, stage_name: str, steps: int, turns: int, overrides: list[str]
) -> list[tuple[float, ...]]:
    enough = f"stages.{stage_name}.steps={2 * steps * (turns + 1)}"
    recipe = load_recipe(Path(run_dir) / "recipe.yaml", [enough, *overrides])
    stage = recipe.stage(stage_name)
    run = build_run(recipe, stage, Path(run_dir), world)
    watch = Watch(stage.watchdog, run.stage_dir, attempt=1, rank=world.rank, ranks=world.size)
    found = []
    for n in range(turns + 1):
        # Either goes first as often as the other.
        if n % 2:
            with_it, without = guarded(run, steps, watch), bare(run, steps)
        else:
            without, with_it = bare(run, steps), guarded(run, steps, watch)
        found.append((*with_it, *without))
    watch.close()
    return found[1:]  # the first pair warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--stage", default="align")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "run"
        shutil.copytree(args.run, copy, ignore=shutil.ignore_patterns(args.stage))
        ours = importlib.import_module("bench_oversight")  # ranks call functions of modules, not of scripts
        asked = (str(copy), args.stage, args.steps, args.turns, args.overrides)
        found = on_ranks(ours.compare, *asked, seconds=1500)[0]
    print(
        json.dumps(
            {
                "step_ms": round(1e3 * min(f[3] for f in found) / args.steps, 2),
                "extra_cpu_ms": round(1e3 * median(f[0] - f[2] for f in found) / args.steps / 2, 3),
                "cpu_ratio": round(median(f[0] / f[2] for f in found), 4),
                "cpu_ratio_of_best": round(min(f[0] for f in found) / min(f[2] for f in found), 4),
                "wall_ratio_of_best": round(min(f[1] for f in found) / min(f[3] for f in found), 4),
            }
        )
    )


if __name__ == "__main__":
    main()
