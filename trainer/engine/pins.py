"""Checkpoints that somebody reads or is about to: `STAGE/pins/step_000100.9f2c....json`, one for each reader.

Training keeps what is pinned beyond its newest ones. A pin ends with its process: the time of the file is a
heartbeat, as that of an attempt (attempts.py). Imports no torch.
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
from uuid import uuid4

import psutil

from data_pipeline.manifest import write_json
from trainer.engine.attempts import BEAT_S, SILENT_S
from trainer.engine.place import Place, clock_of, is_alive

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
            try:
                write_json(file, self._owner)
            except OSError as e:
                if e.errno not in _READ_ONLY:
                    raise
            else:
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


def pins_dir(stage_dir: Path) -> Path:
    return stage_dir / "pins"


def pinned(stage_dir: Path, silent_s: float = SILENT_S) -> set[str]:
    """The names of checkpoints that living processes keep. Pins of dead ones go: at once where the process
    ran here, else `silent_s` after its last heartbeat."""
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


def _holds(file: Path, here: Place, now: float, silent_s: float) -> bool:
    try:
        silent = now - file.stat().st_mtime
        owner = json.loads(file.read_text(encoding="utf-8"))
        if Place(**owner["place"]) == here:
            return is_alive(owner["pid"], owner["began"])
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        pass  # cut short by a kill: it grows old like any other
    return silent <= silent_s
