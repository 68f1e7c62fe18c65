"""What a stage left on disk, read as it is: no torch, no weights; nothing raises because it is cut short."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STEP = re.compile(r"step_(\d+)")


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One start of the stage, from `attempts/`. `alive_at`: its last sign of life, in seconds since 1970;
    `ended`: its exit code, None where it runs or was killed."""

    number: int
    alive_at: float
    record: dict[str, Any]

    @property
    def ended(self) -> int | None:
        return self.record.get("ended")

    @property
    def runs_here(self) -> bool | None:
        """Whether its process lives on this machine; None where that cannot be told from here."""
        place = self.record.get("place")
        if not isinstance(place, dict) or place.get("boot") != _boot() or place.get("processes") != _space():
            return None
        return os.path.exists(f"/proc/{self.record.get('pid')}")


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint whose COMPLETE.json stands there; its digests are not checked here."""

    step: int
    path: Path
    at: float


def read_lines(path: Path, most_bytes: int | None = None) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, of its last `most_bytes`; without lines that a kill cut short."""
    try:
        with path.open("rb") as f:
            start = max(0, f.seek(0, os.SEEK_END) - most_bytes) if most_bytes else 0
            f.seek(start)
            raw = f.read()
    except OSError:
        return []
    found = []
    for line in raw.split(b"\n")[1 if start else 0 :]:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def steps_of(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record a step, in their order; of a step that was written twice the last one counts."""
    by_step = {line["step"]: line for line in lines if isinstance(line.get("step"), int)}
    return [by_step[step] for step in sorted(by_step)]


def attempts_of(stage_dir: Path) -> list[AttemptRecord]:
    """Newest first."""
    found = []
    for path in (stage_dir / "attempts").glob("[0-9]*.json"):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            number, alive = int(path.stem), path.stat().st_mtime
        except (OSError, ValueError):
            continue
        if isinstance(record, dict):
            found.append(AttemptRecord(number, alive, record))
    return sorted(found, key=lambda a: -a.number)


def checkpoints_of(stage_dir: Path) -> list[Saved]:
    """Those that are complete, newest first."""
    found = []
    for path in (stage_dir / "checkpoints").glob("step_*"):
        named = _STEP.fullmatch(path.name)
        try:
            if named:
                found.append(Saved(int(named[1]), path, (path / "COMPLETE.json").stat().st_mtime))
        except OSError:
            continue
    return sorted(found, key=lambda s: -s.step)


def evaluated_steps(stage_dir: Path) -> list[int]:
    """Steps of which some evaluation has left a result."""
    named = {p: _STEP.fullmatch(p.name) for p in (stage_dir / "eval").glob("step_*")}
    return sorted(int(m[1]) for p, m in named.items() if m and any(p.glob("*.json")))


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
