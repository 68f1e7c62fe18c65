"""Where a process runs, whether it still does, and by which clock a shared file system tells ages."""

import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, kw_only=True)
class Place:
    """Processes of equal places see one another's process numbers."""

    host: str
    boot: str
    processes: str

    @classmethod
    def here(cls) -> "Place":
        boot = Path("/proc/sys/kernel/random/boot_id")
        return cls(
            host=socket.gethostname(),
            boot=boot.read_text().strip() if boot.exists() else "",
            processes=os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else "",
        )


def is_alive(pid: int, began: float) -> bool:
    """Whether it is that process, of an equal place, and not a later one with its number."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - began) < 1
    except psutil.NoSuchProcess:
        return False


def clock_of(folder: Path) -> float:
    """Now, by the clock that gives the files there their times."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".") as f:
        return os.fstat(f.fileno()).st_mtime
