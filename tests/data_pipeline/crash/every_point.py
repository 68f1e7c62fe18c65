"""Run with die_at.so preloaded: builds, dying at every change of a file, and builds again after each death.

    LD_PRELOAD=die_at.so python every_point.py die_at.so RECIPE INPUTS WORK

Prints {"points": n, "different": [...]}: the points after which the second build did not end byte-identical.
"""

import contextlib
import ctypes
import json
import os
import shutil
import sys
from pathlib import Path

from data_pipeline.build.run import build


def main(shim: str, recipe: str, inputs: str, work: str) -> None:
    lib = ctypes.CDLL(shim)
    lib.counted.restype = ctypes.c_long
    out = Path(work) / "out"
    counts = Path(work) / "count"

    def run(fatal: int) -> int:
        """The exit code of a build in a process of its own; 137 where it died at that point."""
        if child := os.fork():
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        code = 1
        with contextlib.suppress(Exception):
            lib.arm(str(out).encode(), ctypes.c_long(fatal))
            build(recipe, out, root=inputs)
            counts.write_text(str(lib.counted()))
            code = 0
        os._exit(code)

    if run(0):
        raise SystemExit("the unbroken build failed")
    points = int(counts.read_text())
    expected = content(out)
    different = []
    for point in range(1, points + 1):
        shutil.rmtree(out)
        died, ended = run(point), run(0)
        if (died, ended) != (137, 0) or content(out) != expected:
            different.append([point, died, ended])
    sys.stdout.write(json.dumps({"points": points, "files": len(expected), "different": different}) + "\n")


def content(out: Path) -> dict[str, bytes]:
    """Every file of the dataset. datatrove's logs tell of two runs instead of one, by right."""
    return {
        p.relative_to(out).as_posix(): p.read_bytes()
        for p in out.rglob("*")
        if p.is_file() and p.relative_to(out).parts[0] != "logs"
    }


main(*sys.argv[1:])
