"""What one check found: how it stands, in figures, and what mends it."""

import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from data_pipeline.errors import FoveaError, shown

Status = Literal["ok", "skipped", "warn", "fail"]

BREAKS = (
    FoveaError,
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    ImportError,
    AttributeError,
    subprocess.SubprocessError,
)
"""What a check may end in where the machine is not as it should be: a finding too, and no traceback."""


@dataclass(frozen=True)
class Finding:
    """`fix` is empty where nothing is to be mended. `where`: hosts that it is about; none: the one it was
    made on."""

    name: str
    status: Status
    said: str
    fix: str = ""
    where: tuple[str, ...] = ()


Check = Callable[[], "Finding | Iterable[Finding]"]


def found_by(name: str, check: Check) -> list[Finding]:
    """What `check` finds; where it breaks off, what it had found, and that it did."""
    found: list[Finding] = []
    try:
        made = check()
        for finding in (made,) if isinstance(made, Finding) else made:
            found.append(finding)
    except BREAKS as e:
        found.append(of_error(name, e))
    return found


def of_error(name: str, error: BaseException, status: Status = "fail") -> Finding:
    """The first line of an error is what was found, the others are the fix; where they are a list, all of it
    is what was found."""
    if isinstance(error, FoveaError):
        said, _, fix = shown(error).partition("\n")
        if said.endswith(":"):
            said, fix = f"{said} {' '.join(fix.split())}", ""
        return Finding(name, status, said, " ".join(fix.split()) or "do what it says")
    lines = str(error).strip().splitlines() or [""]
    return Finding(name, status, f"broke off: {type(error).__name__}: {lines[0][:300]}", f"mend {name} first")


def gib(nbytes: float) -> str:
    """As a person reads it."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes / 2**20:.3g} MiB"
