"""The real command line under limits of memory and time, and a canary for what must not run."""

import json
import re
import subprocess
import sys
from pathlib import Path

ADDRESS_SPACE = 3 * 2**30

PEAK = 2**30

SECONDS = 800  # until a process counts as hanging

CPU_SECONDS = 300

REPOSITORY = Path(__file__).parents[3]

# Limits are set in a small process between: a child's peak counts from the process that starts it.
_LIMITED = """
import json, resource, subprocess, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
done = subprocess.run(sys.argv[3:], capture_output=True, timeout=float(sys.argv[2]))
used = resource.getrusage(resource.RUSAGE_CHILDREN)
used = {"peak": used.ru_maxrss * 1024, "cpu": used.ru_utime + used.ru_stime}
print(json.dumps([done.returncode, done.stdout.decode("latin-1"), done.stderr.decode("latin-1"), used]))
"""


class Program:
    """Unpickling this writes a file."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def fovea(*arguments: object) -> tuple[int, str, str, dict[str, float]]:
    """Exit code, stdout, stderr, and the peak bytes and CPU seconds that `fovea data ...` used."""
    command = [sys.executable, "-m", "data_pipeline.cli", "data", *map(str, arguments)]
    limited = [sys.executable, "-c", _LIMITED, str(ADDRESS_SPACE), str(SECONDS), *command]
    done = subprocess.run(limited, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, f"it hangs, or its limits cannot be set: {done.stderr[-2000:]}"
    return tuple(json.loads(done.stdout))


CONTROLS = re.compile(r"[^\n\r\t\x20-\x7e\x80-\xff]|\x7f")
