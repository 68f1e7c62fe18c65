"""Checkpoints that somebody reads or is about to: `STAGE/pins/step_000100.9f2c....json`, one for each reader.

Training keeps what is pinned beyond its newest ones. A pin ends with its process: the time of the file is a
heartbeat, as that of an attempt (attempts.py). One for a job that is yet to run ends with the job.
Imports no torch.
"""

import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from data_pipeline.manifest import write_json
from trainer.engine.attempts import BEAT_S, SILENT_S
from trainer.engine.place import Place, clock_of, is_alive
from trainer.scheduler import is_known

UNASKED_S = 24 * 3600.0
"""So long a pin for a job counts where nobody can say whether the job is over, as in most containers."""

_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}


class Pins:
    """What this process keeps. `hold` is called by one thread."""

    def __init__(self, beat_s: float) -> None:
        me = psutil.Process()
        self._owner = {"place": asdict(Place.here()), "pid": me.pid, "began": me.create_time()}
        self._files: dict[Path, Path] = {}
        self._done, self._beat_s = threading.Event(), beat_s
        self._thread = threading.Thread(target=self._beat, name="pins", daemon=True)
        self._thread.start()

    def hold(self, checkpoints: Iterable[Path]) -> None:
        """Keep these and no others. A run that may only be read is read as it stands, without a pin."""
        wanted = set(checkpoints)
        for checkpoint in wanted - self._files.keys():
            file = pins_dir(checkpoint.parents[1]) / f"{checkpoint.name}.{uuid4().hex}.json"
            if _written(file, self._owner):
                self._files = {**self._files, checkpoint: file}
        for checkpoint in self._files.keys() - wanted:
            self._files[checkpoint].unlink(missing_ok=True)
        self._files = {c: file for c, file in self._files.items() if c in wanted}

    def close(self) -> None:
        self._done.set()
        self._thread.join()
        self.hold(())

    def _beat(self) -> None:
        while not self._done.wait(self._beat_s):
            for file in self._files.values():
                with contextlib.suppress(OSError):  # made good by the next: the file server may be away
                    os.utime(file)


@contextmanager
def pinning(beat_s: float = BEAT_S) -> Iterator[Pins]:
    """Pins that last no longer than what stands inside."""
    pins = Pins(beat_s)
    try:
        yield pins
    finally:
        pins.close()


def pin_for_job(checkpoint: Path, job: str) -> None:
    """Keep it as long as Slurm knows that job, or the task `4712_3` of an array."""
    _written(pins_dir(checkpoint.parents[1]) / f"{checkpoint.name}.{job}.json", {"job": job})


def pins_dir(stage_dir: Path) -> Path:
    return stage_dir / "pins"


def pinned(stage_dir: Path, silent_s: float = SILENT_S) -> set[str]:
    """The names of checkpoints that living processes and jobs keep. Pins of dead ones go: at once where the
    process ran here, or Slurm says so, else `silent_s` after its last heartbeat."""
    folder = pins_dir(stage_dir)
    files = [folder / name for name in (os.listdir(folder) if folder.is_dir() else ()) if name[0] != "."]
    if not files:
        return set()
    try:
        now = clock_of(folder)
    except OSError:  # a full disk is what retention is to make room on
        now = time.time()
    here, found = Place.here(), set()
    for file in files:
        if _holds(file, here, now, silent_s):
            found.add(file.name.partition(".")[0])
        else:
            file.unlink(missing_ok=True)
    return found


def _written(file: Path, owner: dict[str, Any]) -> bool:
    """False in a run that may only be read."""
    try:
        write_json(file, owner)
    except OSError as e:
        if e.errno not in _READ_ONLY:
            raise
        return False
    return True


def _holds(file: Path, here: Place, now: float, silent_s: float) -> bool:
    try:
        silent = now - file.stat().st_mtime
        owner = json.loads(file.read_text(encoding="utf-8"))
        if "job" in owner:
            known = is_known(owner["job"])
            return silent <= UNASKED_S if known is None else known
        if Place(**owner["place"]) == here:
            return is_alive(owner["pid"], owner["began"])
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        pass  # cut short by a kill: it grows old like any other
    return silent <= silent_s
