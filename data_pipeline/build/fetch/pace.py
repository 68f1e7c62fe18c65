"""When the next request to a host may start. The time lies in a file, so that processes keep it together."""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from data_pipeline.sample import content_id

_BUSY_S = 0.002  # another process holds the file: for as long as it takes to write a number
_TRIES = 100
_LONGEST_S = 86_400.0  # a later time is not a wait but a clock that was set back


class Pace:
    """`root` is the cache's folder. Times are seconds since 1970."""

    def __init__(self, root: Path):
        self.root = root

    def take(self, host: str, interval: float) -> float:
        """0: the request may start now, the next one `interval` seconds later. Else the seconds to wait."""
        wait = self._update(host, lambda now, free: now + interval if free <= now else free)
        return _BUSY_S if wait is None else wait

    def hold(self, host: str, seconds: float) -> None:
        """No request to the host for so long: it asked for it."""
        for _ in range(_TRIES):
            if self._update(host, lambda now, free: max(free, now + seconds)) is not None:
                return
            time.sleep(_BUSY_S)

    def _update(self, host: str, change: Callable[[float, float], float]) -> float | None:
        """Seconds until the time that stood there; None: another process is at it just now."""
        key = content_id(host)
        path = self.root / "hosts" / key[:2] / key
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            now = time.time()
            free = _number(os.read(fd, 64))
            free = free if free - now < _LONGEST_S else 0.0
            if (later := change(now, free)) != free:
                os.pwrite(fd, f"{later:<32.6f}".encode(), 0)
            return max(0.0, free - now)
        except BlockingIOError:
            return None
        finally:
            os.close(fd)


def _number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0  # a new file, or one that a dying machine left half written
