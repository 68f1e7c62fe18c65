"""A rank that is watched, without torch: `python watched.py STAGE RANK RANKS WHAT FLOOR_S`.

It enters phases step by step as training does, and meets the other ranks by files. In step 3 it does WHAT to
itself.
"""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from trainer.engine.watchdog import Watch, Watchdog

STEPS = 6


def meet(stage: Path, watch: Watch, rank: int, ranks: int, step: int) -> None:
    watch.enter("communication", step)
    (stage / f"met_{step}_{rank}").touch()
    watch.marker.wait(True)
    while not all((stage / f"met_{step}_{r}").exists() for r in range(ranks)):
        time.sleep(0.01)
    watch.marker.wait(False)


def suffer(what: str, floor_s: float) -> None:
    match what:
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "abort":
            os.abort()
        case "gil":
            while True:
                ctypes.PyDLL(None).sleep(3600)
        case "hang":
            while True:
                pass
        case "slowly":
            time.sleep(floor_s * 0.25)


def main() -> None:
    stage, rank, ranks, what = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    floor_s = float(sys.argv[5])
    # What it imports is loaded: from here on all of them have the same to do.
    (stage / f"here_{rank}").touch()
    while not all((stage / f"here_{r}").exists() for r in range(ranks)):
        time.sleep(0.01)
    if what == "late":
        time.sleep(3600)
    policy = Watchdog(factor=2, floor_s=floor_s, first_s=1.5 * floor_s)
    watch = Watch(policy, stage, attempt=1, rank=rank, ranks=ranks)
    for step in range(1, STEPS + 1):
        watch.enter("data", step)
        watch.hold([f"sample-{rank}-{step}-{n}" for n in range(3)])
        watch.enter("forward", step)
        watch.marker.move(b"language.layers.1")
        if step == 3 or what == "slowly":
            suffer(what, floor_s)
        meet(stage, watch, rank, ranks, step)
    watch.close()
    (stage / f"done_{rank}").touch()


if __name__ == "__main__":
    main()
