"""Who works on a stage, and what earlier attempts came to: `STAGE/attempts/000007.json`, one for each start.

The highest number holds the stage. It is taken by a hard link, which one of several contenders gets, also on
NFS; the time of the file is the heartbeat, so ages are told by one clock, the file server's. Numbers only
grow: an owner that slept sees a higher one and stops.
"""

import contextlib
import errno
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from data_pipeline.errors import (
    ConfigError,
    DataError,
    FoveaError,
    NoProgressError,
    PreemptedError,
    PreflightError,
)
from data_pipeline.manifest import json_bytes, write_json
from trainer.engine.place import Place, clock_of, is_alive

BEAT_S = 10.0
"""Seconds between two heartbeats."""

SILENT_S = 180.0
"""So long after its last heartbeat an owner on another machine is taken for dead."""

TRIES = 3
"""A start and two restarts: after so many attempts without a checkpoint there is no further one."""

KEPT = 16
"""Attempts whose files stay."""

NOT_COUNTED = {c.exit_code for c in (ConfigError, PreflightError, DataError, PreemptedError)} | {130}
"""Exit codes of attempts that say nothing about progress: refused before a step, or stopped by somebody."""

_NAME = re.compile(r"(\d{6})\.json")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of a stage. `began`: of the process, in seconds since 1970. `recipe`: a digest of what is
    trained. `saved`: the last step it saved, in `save_s` seconds. `ended`: its exit code, if it had one."""

    recipe: str
    place: Place
    pid: int
    began: float
    parent: int
    job: str
    requeued: int
    saved: int | None = None
    save_s: float | None = None
    ended: int | None = None

    @classmethod
    def here(cls, recipe: str, place: Place | None = None) -> "Attempt":
        me = psutil.Process()
        return cls(
            recipe=recipe,
            place=place or Place.here(),
            pid=me.pid,
            began=me.create_time(),
            parent=os.getppid(),
            job=os.environ.get("SLURM_JOB_ID", ""),
            requeued=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        )

    @classmethod
    def read(cls, path: Path) -> "Attempt":
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**raw, "place": Place(**raw["place"])})
        except (ValueError, KeyError, TypeError) as e:
            raise DataError(f"{path} is no record of an attempt ({e}).\n  {_reset(path.parent)}") from None

    def __str__(self) -> str:
        job = f"job {self.job}, " if self.job else ""
        return f"{job}process {self.pid} on {self.place.host}"

    def is_same(self, other: "Attempt") -> bool:
        return (self.place, self.pid, self.began) == (other.place, other.pid, other.began)

    def is_gone(self, me: "Attempt", silent_s: float, limit_s: float) -> bool:
        """Whether the owner, silent for so long, cannot come back to work as the owner."""
        if self.ended is not None:
            return True
        if self.place == me.place:
            return not is_alive(self.pid, self.began)
        if self.job and self.job == me.job and self.requeued < me.requeued:
            return True  # Slurm requeues a job only once its last run has ended
        return silent_s > limit_s


class Lease:
    """The right to write into a stage's directory, kept by a heartbeat in a thread."""

    def __init__(self, path: Path, attempt: Attempt, beat_s: float = BEAT_S) -> None:
        self._path, self._attempt, self._beat_s = path, attempt, beat_s
        self._next = path.with_name(f"{int(path.stem) + 1:06d}.json")
        self._done = threading.Event()
        self._noting = threading.Lock()  # the thread that writes checkpoints notes them as well
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def take(
        cls,
        stage_dir: Path,
        attempt: Attempt,
        *,
        silent_s: float = SILENT_S,
        beat_s: float = BEAT_S,
    ) -> "Lease":
        """Raises PreflightError where somebody holds the stage, NoProgressError as `refuse_held` does."""
        folder = attempts_dir(stage_dir)
        folder.mkdir(parents=True, exist_ok=True)
        mine = folder / f".{uuid4().hex}"
        mine.write_bytes(json_bytes(asdict(attempt)))
        try:
            while True:
                number = refuse_held(stage_dir, attempt, silent_s=silent_s) + 1
                path = folder / f"{number:06d}.json"
                if _linked(mine, path):
                    break
        finally:
            mine.unlink()
        for old in _numbers(folder)[KEPT:]:
            (folder / f"{old:06d}.json").unlink(missing_ok=True)
        return cls(path, attempt, beat_s)

    @property
    def number(self) -> int:
        """Of this attempt among those at the stage."""
        return int(self._path.stem)

    @property
    def lost(self) -> bool:
        """True once another attempt holds the stage, or the record was taken away."""
        try:
            return self._next.exists() or not Attempt.read(self._path).is_same(self._attempt)
        except (FileNotFoundError, DataError):
            return True

    def saved(self, step: int, seconds: float) -> None:
        """Note a committed checkpoint."""
        self._note(saved=step, save_s=seconds)

    def release(self, code: int) -> None:
        """Let go, with the exit code of this attempt."""
        self._done.set()
        self._thread.join()
        self._note(ended=code)

    def _note(self, **changes: Any) -> None:
        with self._noting:
            self._attempt = replace(self._attempt, **changes)
            if not self.lost:
                write_json(self._path, asdict(self._attempt))

    def _beat(self) -> None:
        while not self._done.wait(self._beat_s):
            # One that fails is made good by the next: the file server may be away for a while.
            with contextlib.suppress(OSError):
                os.utime(self._path)


def attempts_dir(stage_dir: Path) -> Path:
    return stage_dir / "attempts"


def refuse_held(stage_dir: Path, me: Attempt, *, silent_s: float = SILENT_S) -> int:
    """The highest number there is, of an attempt that is over; 0 where there is none.

    Raises PreflightError where it is not over, NoProgressError where the last attempts at this recipe saved
    nothing.
    """
    folder = attempts_dir(stage_dir)
    for number in _numbers(folder)[:1]:
        path = folder / f"{number:06d}.json"
        try:
            attempt = Attempt.read(path)
            silent = clock_of(folder) - path.stat().st_mtime
        except FileNotFoundError:
            break  # taken away by a reset at this moment
        if not attempt.is_gone(me, silent, silent_s):
            where = "" if attempt.place == me.place else _elsewhere(path, silent, silent_s)
            raise PreflightError(
                f"{stage_dir} is in use by {attempt} (last heartbeat {max(0.0, silent):.0f} s ago).\n"
                f"  Wait for it, stop it, or choose another --run directory.{where}"
            )
        _refuse_without_progress(stage_dir, me.recipe)
        return number
    return 0


def note_end(stage_dir: Path, parent: int, code: int) -> None:
    """Called by a launcher: the code of its attempt, whose main rank could not write it itself."""
    folder = attempts_dir(stage_dir)
    for number in _numbers(folder)[:1]:
        path = folder / f"{number:06d}.json"
        attempt = Attempt.read(path)
        if attempt.ended is None and attempt.parent == parent and attempt.place == Place.here():
            write_json(path, asdict(replace(attempt, ended=code)))


def last_save_s(stage_dir: Path) -> float | None:
    """What the last checkpoint took, of all attempts that are recorded."""
    return next((a.save_s for a in _attempts(stage_dir) if a.save_s is not None), None)


def end_of(error: BaseException | None) -> int:
    """The exit code that an error leads to."""
    if error is None:
        return 0
    return error.exit_code if isinstance(error, FoveaError) else 1


def _refuse_without_progress(stage_dir: Path, recipe: str) -> None:
    fruitless = 0
    for attempt in _attempts(stage_dir):
        if attempt.recipe != recipe or attempt.saved is not None or attempt.ended == 0:
            return
        fruitless += attempt.ended not in NOT_COUNTED
        if fruitless == TRIES:
            raise NoProgressError(
                f"the last {TRIES} attempts at {stage_dir} ended without a new checkpoint: a further one "
                f"would end like them.\n"
                "  Look at what they said, and mend it: out of memory, a broken node, a checkpoint_every "
                "that the time limit never reaches.\n"
                f"  {_reset(attempts_dir(stage_dir))}  A changed recipe counts as a new beginning."
            )


def _attempts(stage_dir: Path) -> Iterator[Attempt]:
    """Newest first."""
    folder = attempts_dir(stage_dir)
    for number in _numbers(folder):
        with contextlib.suppress(FileNotFoundError):
            yield Attempt.read(folder / f"{number:06d}.json")


def _numbers(folder: Path) -> list[int]:
    """Newest first."""
    names = (_NAME.fullmatch(name) for name in (os.listdir(folder) if folder.is_dir() else ()))
    return sorted((int(m.group(1)) for m in names if m), reverse=True)


def _linked(mine: Path, path: Path) -> bool:
    """Whether `path` is ours now. The number of links tells: NFS may lose the answer of a success."""
    try:
        os.link(mine, path)
    except FileExistsError:
        if mine.stat().st_nlink != 2:
            return False
    except OSError as e:
        if e.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        raise PreflightError(
            f"{path.parent} is on a file system without hard links, which tell who owns a stage.\n"
            "  Choose a --run directory on another one."
        ) from None
    # Deleted numbers could be taken again by one that slept since it looked: it is not the highest then.
    if _numbers(path.parent)[0] != int(path.stem):
        path.unlink()
        return False
    return True


def _elsewhere(path: Path, silent: float, limit: float) -> str:
    return (
        f"\n  If it is dead, repeat the command in {max(1.0, limit - silent):.0f} s; "
        f"if you know that it is, delete {path}."
    )


def _reset(folder: Path) -> str:
    return f"Begin anew with:  rm -r {folder}"
