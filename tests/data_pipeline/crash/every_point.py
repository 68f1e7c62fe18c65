"""Run with die_at.so preloaded: does one thing to a dataset, dying at every change of a file, and again.

    LD_PRELOAD=die_at.so python every_point.py die_at.so {build|withdraw|exclude|export|copy} INPUTS WORK

INPUTS holds recipe.yaml. Prints {"changes", "files", "wrong": [[point, change, what is wrong], ...]}.
"""

import contextlib
import ctypes
import functools
import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2

from data_pipeline.build.exporters.export import export
from data_pipeline.build.look.funnel import balanced, funnel
from data_pipeline.build.run import build
from data_pipeline.build.verify import verify
from data_pipeline.build.withdraw import withdraw
from data_pipeline.errors import FoveaError
from data_pipeline.manifest import read_manifest
from data_pipeline.view import Exclusion, exclude, light_rows

PROCESSES = 2
STRANGER = "in the directory, but not in"  # half a file that nothing names harms nobody
# Half of the time of builds as small as these: Loguru's search for libraries, the report's templates.
sysconfig.get_path = functools.cache(sysconfig.get_path)
jinja2.Environment.compile = functools.partialmethod(
    lambda env, source, *named, compiled={}, whole=jinja2.Environment.compile: (
        compiled.get(source) or compiled.setdefault(source, whole(env, source, *named))
    )
)
lib = ctypes.CDLL(sys.argv[1])
lib.changes.restype = ctypes.c_char_p


@dataclass(frozen=True)
class Deed:
    """`act` changes files below the folder that it is given; `begin` makes what it starts from."""

    begin: Callable[[Path], None]
    act: Callable[[Path], None]


def main(_: str, name: str, inputs: str, work: str) -> None:
    base = Path(work) / "base"
    build(Path(inputs) / "recipe.yaml", base / "data")  # also loads and compiles what all children share
    one, other, third = [row["id"] for _, row in light_rows(base / "data")][:3]
    withdraw(base / "data", ids=[third])
    exclude(base / "data", "low", [Exclusion(third, None, "low")], {"k": 0})

    def copy(folder: Path) -> None:
        shutil.copytree(base, folder)

    deed = {
        "build": Deed(Path.mkdir, lambda f: build(Path(inputs) / "recipe.yaml", f / "data")),
        "withdraw": Deed(copy, lambda f: withdraw(f / "data", ids=[one, "unknown"])),
        "exclude": Deed(
            copy, lambda f: exclude(f / "data", "low", [Exclusion(other, None, "low")], {"k": 1})
        ),
        "export": Deed(copy, lambda f: export(f / "data", f / "exported", "obelics")),
        "copy": Deed(copy, lambda f: export(f / "data", f / "exported", "fovea")),
    }[name]
    folder = Path(work) / "0"
    deed.begin(folder)
    before = content(folder)
    noted = Path(work) / "changes"
    if run(deed, folder, 0, noted):
        raise SystemExit(f"the unbroken {name} failed")
    changes = noted.read_text().splitlines()
    after = content(folder)
    if faults := unsound(folder):
        raise SystemExit(f"the unbroken {name} is not sound: {faults}")
    shutil.rmtree(folder)
    points = range(1, len(changes) + 1)
    children = []
    for k in range(PROCESSES):
        if not (child := os.fork()):
            found = [
                [point, changes[point - 1], fault]
                for point in points[k::PROCESSES]
                for fault in faults_after(deed, Path(work) / str(k), point, before, after)
            ]
            (Path(work) / f"found{k}").write_text(json.dumps(found))
            os._exit(0)
        children.append(child)
    if any(os.waitpid(child, 0)[1] for child in children):
        raise SystemExit("a process of the enumeration failed")
    wrong = [w for k in range(PROCESSES) for w in json.loads((Path(work) / f"found{k}").read_text())]
    page = {"changes": len(changes), "files": len(after), "wrong": wrong}
    sys.stdout.write(json.dumps(page) + "\n")


def run(deed: Deed, folder: Path, fatal: int, noted: Path | None = None) -> int:
    """The exit code of the deed in a process of its own; 137 where it died at that point."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    with contextlib.suppress(Exception):
        lib.arm(str(folder).encode(), ctypes.c_long(fatal))
        deed.act(folder)
        if noted is not None:
            noted.write_bytes(lib.changes())
        code = 0
    os._exit(code)


def faults_after(
    deed: Deed, folder: Path, point: int, before: dict[str, bytes], after: dict[str, bytes]
) -> Iterator[str]:
    """What is wrong once the deed has died there, and once it was repeated."""
    shutil.rmtree(folder, ignore_errors=True)
    deed.begin(folder)
    if (code := run(deed, folder, point)) != 137:
        yield f"did not die, exit code {code}"
    if (folder / "data" / "manifest.json").exists():
        yield from (f"dead: {fault}" for fault in unsound(folder) if STRANGER not in fault)
    left = {k: v for k, v in content(folder).items() if k in before or k in after}
    yield from (
        f"dead: {k} is neither old nor new" for k in left if left[k] not in (before.get(k), after.get(k))
    )
    if code := run(deed, folder, 0):
        yield f"the repeat ended with exit code {code}"
    ended = content(folder)
    yield from (f"repeated: {k} differs" for k in {*ended, *after} if ended.get(k) != after.get(k))
    # What is the unbroken dataset to the byte verifies as that does; adding it up is cheap.
    yield from (f"repeated: {fault}" for fault in imbalances(folder))


def unsound(folder: Path) -> list[str]:
    """Why the dataset is none: what `verify` finds, and what does not add up."""
    try:
        verify(folder / "data")
    except FoveaError as e:
        return str(e).splitlines()[1:] or [str(e)]
    return imbalances(folder)


def imbalances(folder: Path) -> list[str]:
    try:
        return balanced(funnel(read_manifest(folder / "data")))
    except FoveaError as e:
        return [str(e)]


def content(folder: Path) -> dict[str, bytes]:
    """Every file and every empty folder, but what tells of two runs instead of one, by right: datatrove's
    logs, and the answers of a model in the order in which they came."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else b""
        for p in folder.rglob("*")
        if "logs" not in p.relative_to(folder).parts
        and ".sqlite" not in p.name
        and (p.is_file() or not any(p.iterdir()))
    }


main(*sys.argv[1:])
