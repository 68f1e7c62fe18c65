"""Compiles `_walk.c` beside itself, as `pip install` does: `python data_pipeline/build/read/compile_walk.py`.

Imports nothing but the standard library: it runs before anything is installed.
"""

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import zlib
from pathlib import Path

SOURCE = Path(__file__).with_name("_walk.c")
COMPILED = SOURCE.with_name("_walk.abi3.so")


def source_sum(source: Path = SOURCE) -> int:
    """By which a compiled file is known to be of this source and no older one."""
    return zlib.crc32(source.read_bytes())


def compile_walk(target: Path = COMPILED) -> str:
    """`SOURCE` compiled to `target`, which appears whole or not at all; what hindered it, or nothing."""
    command = shlex.split(f"{sysconfig.get_config_var('LDSHARED')} {sysconfig.get_config_var('CCSHARED')}")
    if "CC" in os.environ:
        command[:1] = shlex.split(os.environ["CC"])
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        include = f"-I{sysconfig.get_path('include')}"
        rest = ["-O2", f"-DSOURCE_SUM={source_sum()}U", include, str(SOURCE), "-o", str(made)]
        try:
            run = subprocess.run([*command, *rest], capture_output=True, text=True)
        except OSError as e:
            return f"{command[0]}: {e.strerror}"
        if run.returncode:
            return run.stderr.strip() or f"{command[0]} ended with {run.returncode}"
        made.replace(target)
    return ""


if __name__ == "__main__":
    sys.exit(compile_walk())
