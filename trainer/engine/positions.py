"""What a rank leaves for others to read without a collective: where it stands, and its Python stacks.

`STAGE/watch/rank_3` is one page, mapped into memory: a rank writes where it stands by a store to memory, and
every process of its machine sees that at once, whatever becomes of the rank. Every ten seconds, and when the
rank begins to stand still, the page is written through, for other machines on the shared file system.
torch's own store would need no shared directory, but it ends with rank 0, which may be the one that hangs.
"""

import contextlib
import faulthandler
import json
import mmap
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

import psutil

Phase = Literal["setup", "data", "forward", "backward", "communication", "update", "checkpoint", "evaluation"]
"""What a rank is at. All ranks enter the same phases in the same order."""

ENDED, FAILED = "ended", "failed"
"""In the place of a phase: the rank has done all that the others could wait for; it broke."""

_SIZE = 4096
_NOW = struct.Struct("<QQBqd16s160s")  # entered, steps within, waiting, step, limit, phase, module
_ABOUT = 256  # where JSON begins that says what changes seldom
_ANSWER_S = 2.0  # for a process that was asked for its stacks


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a rank stands. `entered` counts its phases, `moved` the modules and waits within the phase,
    `waiting`: in a collective. `began`: of its process, in seconds since 1970."""

    rank: int
    attempt: int = 0
    host: str = ""
    pid: int = 0
    began: float = 0.0
    entered: int = 0
    moved: int = 0
    waiting: bool = False
    step: int = 0
    limit_s: float
    phase: str = "setup"
    module: str = ""
    samples: tuple[str, ...] = ()
    samples_left_out: int = 0

    @property
    def order(self) -> tuple[int, int, bool]:
        """Smaller: further behind. At the same place, one that is in the collective waits for one outside."""
        return self.entered, self.moved, self.waiting

    @property
    def place(self) -> str:
        inside = f" ({self.module})" if self.module else ""
        return f"{self.phase}{inside} of step {self.step}" if self.step else f"{self.phase}{inside}"

    @property
    def is_gone(self) -> bool:
        """Whether its process has ended, as far as this machine can tell."""
        return self._status() == psutil.STATUS_DEAD

    @property
    def state(self) -> str:
        """Of its process, where that explains why it stands still."""
        match self._status():
            case psutil.STATUS_DEAD:
                return "its process is gone"
            case psutil.STATUS_STOPPED | psutil.STATUS_TRACING_STOP:
                return "stopped (state T)"
        return ""

    def _status(self) -> str:
        if self.host != socket.gethostname() or not self.pid:
            return ""
        try:
            process = psutil.Process(self.pid)
            other = abs(process.create_time() - self.began) > 1
            status = process.status()
        except psutil.NoSuchProcess:
            return psutil.STATUS_DEAD
        return psutil.STATUS_DEAD if other or status == psutil.STATUS_ZOMBIE else status

    @classmethod
    def read(cls, path: Path) -> "Position | None":
        """None where there is none, or where it is being written."""
        try:
            raw = path.read_bytes()
            about = json.loads(raw[_ABOUT:].rstrip(b"\0"))
            entered, moved, waiting, step, limit_s, phase, module = _NOW.unpack_from(raw)
            return cls(
                **{**about, "samples": tuple(about["samples"])},
                entered=entered,
                moved=moved,
                waiting=bool(waiting),
                step=step,
                limit_s=limit_s,
                phase=phase.rstrip(b"\0").decode(),
                module=module.rstrip(b"\0").decode(errors="replace"),
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError, struct.error):
            return None


def page_of(stage_dir: Path, rank: int) -> Path:
    return stage_dir / "watch" / f"rank_{rank}"


def stacks_dir(stage_dir: Path, step: int) -> Path:
    return stage_dir / "stacks" / f"step_{step}"


class Marker:
    """This rank's position, kept where others see it. From here on the rank answers SIGUSR2 with its stacks,
    also while it holds the interpreter's lock, and leaves them where it dies by its own fault (abort,
    segmentation fault). Called by one thread; any other may ask for `order`."""

    def __init__(self, stage_dir: Path, rank: int, attempt: int, limit_s: float) -> None:
        path = page_of(stage_dir, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        _answer_with_stacks(path.with_suffix(".stacks"))
        me = psutil.Process()
        self._about = {
            "rank": rank,
            "attempt": attempt,
            "host": socket.gethostname(),
            "pid": me.pid,
            "began": me.create_time(),
        }
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(self._file, bytes(_SIZE))  # a store to a page for which the disk has no room is a SIGBUS
        self._page = mmap.mmap(self._file, _SIZE)
        self._entered = 0
        self.hold((), 0)
        self.enter("setup", 0, limit_s)

    @property
    def order(self) -> tuple[int, int, bool]:
        return self._entered, self._moved, self._waiting

    def enter(self, phase: str, step: int, limit_s: float) -> None:
        """The rank is at something else now; where it stands still longer than `limit_s`, it hangs."""
        self._entered += 1
        self._moved, self._waiting = 0, False
        self._phase, self._module, self._step, self._limit_s = phase.encode(), b"", step, limit_s
        self._write()

    def move(self, module: bytes) -> None:
        """It entered that module."""
        self._moved += 1
        self._module = module
        self._write()

    def wait(self, waiting: bool) -> None:
        """It begins or ends to wait for a collective."""
        self._moved += not waiting
        self._waiting = waiting
        self._write()

    def hold(self, samples: Sequence[str], left_out: int) -> None:
        """What its batch is made of."""
        about = {**self._about, "samples": list(samples), "samples_left_out": left_out}
        raw = json.dumps(about).encode()
        if len(raw) > _SIZE - _ABOUT:
            return self.hold(samples[: len(samples) // 2], left_out + (len(samples) + 1) // 2)
        self._page[_ABOUT:] = raw.ljust(_SIZE - _ABOUT, b"\0")

    def end(self, phase: str, limit_s: float) -> None:
        """The last phase: nobody waits for a rank that has ended, all wait for one that has failed."""
        self._entered = 2**63 if phase == ENDED else -1
        self.enter(phase, self._step, limit_s)

    def write_through(self) -> None:
        """To other machines."""
        os.fdatasync(self._file)

    def _write(self) -> None:
        _NOW.pack_into(
            self._page,
            0,
            self._entered,
            self._moved,
            self._waiting,
            self._step,
            self._limit_s,
            self._phase,
            self._module,
        )


def dump_own(file: Path, position: Position) -> None:
    """The stacks of this process."""
    with _claimed(file) as f:
        if f is not None:
            f.write(f"{_title(position)}\n\n")
            f.flush()
            faulthandler.dump_traceback(f, all_threads=True)


def dump_other(stage_dir: Path, file: Path, position: Position) -> None:
    """What can be had of another rank's stacks: its answer to a signal where it runs on this machine, else
    what it left before; and the state of its process."""
    answer = page_of(stage_dir, position.rank).with_suffix(".stacks")
    state = position.state
    if not state and position.pid and position.host == socket.gethostname():
        had = _size(answer)
        with contextlib.suppress(ProcessLookupError):
            os.kill(position.pid, signal.SIGUSR2)
        deadline = time.monotonic() + _ANSWER_S
        while _size(answer) == had and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1)  # until it is whole
    with _claimed(file) as f:
        if f is not None:
            f.write(f"{_title(position)}\n{state or ''}\n\n")
            f.write(answer.read_text(errors="replace") if _size(answer) else "It left no stacks.\n")


def _answer_with_stacks(file: Path) -> None:
    """For the rest of this process: a handler that does not need the interpreter."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # before and after: asked too early or too late is no death
    stacks = file.open("w")
    faulthandler.enable(stacks)
    faulthandler.register(signal.SIGUSR2, stacks, all_threads=True)


@contextlib.contextmanager
def _claimed(file: Path) -> Iterator[TextIO | None]:
    """The file, for the one of several processes that comes first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with file.open("x") as f:
            yield f
    except FileExistsError:
        yield None


def _title(position: Position) -> str:
    return f"rank {position.rank} on {position.host or 'an unknown host'}: {position.place}"


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
