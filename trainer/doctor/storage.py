"""The run directory as all nodes see it: what checkpoints and the ownership of a stage rely on, tried out.

A record that one rank commits is read by all others; a rename over a file is never seen half done; of several
hard links to one name one is made. Nothing takes a lock there: `trainer/engine/attempts.py` owns by a link.
"""

import contextlib
import errno
import os
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from data_pipeline.errors import TransientError
from data_pipeline.manifest import commit
from trainer.board import Board
from trainer.doctor.crew import Crew
from trainer.doctor.disk import standing
from trainer.doctor.finding import Finding, gib

WRITTEN = 64 * 2**20
"""Bytes that each rank writes to see how fast that is; all together at most `_WRITTEN_BY_ALL`."""

_WRITTEN_BY_ALL = 8 * 2**30
_WRITE_S = 5.0
_PAGE = 64 * 2**10
_OVER_S = 0.5  # of renaming over a file that others read
_LATE_S = 5.0
_NEAR = 64  # other ranks, whose files a rank looks for
_SLOW = 1 / 3


@dataclass(frozen=True)
class Shared:
    """A probe's directory inside the run directory, and what all that came agree upon by.

    `until`: of time.monotonic(), by when the others are taken for lost. `visible_s`: how long a file of
    another rank may take to appear.
    """

    directory: Path
    crew: Crew
    board: Board | None
    until: float
    visible_s: float

    def agreed(self, subject: str, value: Any) -> dict[int, Any]:
        """What each rank posts on the subject (all ranks that came), of those that do in time.

        One rank collects, so that a thousand do not all ask for a thousand notes. Raises TransientError where
        that one is silent.
        """
        if self.board is None:
            return {self.crew.rank: value}
        self.board.post(subject, value)
        if self.crew.is_main:
            told = self.board.read(subject, self.crew.hosts, self.until)
            self.board.post(f"{subject} of all", list(told.items()))
            return told
        main = min(self.crew.hosts)
        page = self.board.read(f"{subject} of all", [main], self.until + 1)
        if not page:
            raise TransientError(f"rank {main} does not say what all found: '{subject}'")
        return dict(map(tuple, page[main]))


def run_directory(shared: Shared, run: Path) -> Iterator[Finding]:
    """All tries, one after another (all ranks that came). What it wrote is gone afterwards."""
    place = shared.directory
    try:
        place.mkdir(exist_ok=True)
        record = place / f"rank_{shared.crew.rank}"
        with commit(record) as f:
            f.write(str(shared.crew.rank).encode())
    except OSError as e:
        shared.agreed("written", False)
        yield _unwritable(run, e)
        return
    try:
        wrote = [r for r, there in shared.agreed("written", True).items() if there]
        # From here on without those that could not write, and say so themselves.
        crew = replace(shared.crew, hosts={r: shared.crew.hosts[r] for r in wrote})
        shared = replace(shared, crew=crew)
        near = neighbours(wrote, crew.rank)
        seen, took = _seen(place, near, shared.visible_s)
        yield judge_sight(shared, [r for r in near if r not in seen], took)
        together = shared.agreed("seen", len(seen) == len(near))
        if len(together) == len(wrote) and all(together.values()):
            yield from _renamed_over(shared)
            yield from _one_link(shared, record)
        yield from _write_speed(shared)
        shared.agreed("done", True)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def neighbours(ranks: Sequence[int], rank: int) -> list[int]:
    """The ranks that come after `rank` in a ring of all: enough to reach other nodes, few enough that a
    thousand ranks do not open a million files."""
    i = ranks.index(rank)
    return [*ranks[i + 1 :], *ranks[:i]][:_NEAR]


def _seen(place: Path, ranks: Sequence[int], seconds: float) -> tuple[set[int], float]:
    """Which ranks' records are whole here, and after how many seconds the last of them was."""
    began, seen = time.monotonic(), set[int]()
    while True:
        with contextlib.suppress(OSError):
            os.listdir(place)  # makes an NFS client ask its server again
        for r in set(ranks) - seen:
            with contextlib.suppress(OSError):
                if (place / f"rank_{r}").read_bytes() == str(r).encode():
                    seen.add(r)
        passed = time.monotonic() - began
        if len(seen) == len(ranks) or passed > seconds:
            return seen, passed
        time.sleep(0.05)


def judge_sight(shared: Shared, unseen: Sequence[int], took: float) -> Finding:
    """`unseen`: ranks whose files did not appear here; the last of the others did after `took` seconds."""
    crew = shared.crew
    if unseen:
        return Finding(
            "shared directory",
            "fail",
            f"files of {crew.named(unseen)} do not appear in {shared.directory.parent} within "
            f"{shared.visible_s:.0f} s",
            "name a --run directory on a file system that all nodes mount, by the same absolute path",
        )
    if took > _LATE_S:
        return Finding(
            "shared directory",
            "warn",
            f"what other ranks wrote appears only after {took:.1f} s",
            "shorten the caches of the mount (NFS: actimeo=3, lookupcache=positive): checkpoints wait for it",
        )
    if crew.ranks > 1:
        said = f"{shared.directory.parent}: what other ranks wrote appears within {max(took, 0.01):.2f} s"
        return Finding("shared directory", "ok", said)
    return Finding(
        "shared directory", "skipped", f"one rank alone; {shared.directory.parent} can be written to"
    )


def _renamed_over(shared: Shared) -> Iterator[Finding]:
    """Rank 0 renames over a file again and again while the others read it (all ranks that came)."""
    file, end = shared.directory / "over", shared.directory / "end"
    if shared.crew.is_main:
        with commit(file) as f:
            f.write(b"0" * _PAGE)
    shared.agreed("over", True)
    turns = broken = 0
    until = time.monotonic() + _OVER_S
    if shared.crew.is_main:
        while time.monotonic() < until:
            turns += 1
            with commit(file) as f:
                f.write(str(turns % 10).encode() * _PAGE)
            held = file.read_bytes()
            broken += held != str(turns % 10).encode() * _PAGE
        end.touch()
    elif shared.crew.rank in neighbours(list(shared.crew.hosts), min(shared.crew.hosts)):
        while time.monotonic() < until + shared.visible_s and not end.exists():
            turns += 1
            broken += not _is_whole(file)
    told = shared.agreed("renamed", [turns, broken])
    if shared.crew.is_main:
        yield judge_reads(told, shared.crew)


def judge_reads(told: Mapping[int, Sequence[int]], crew: Crew) -> Finding:
    """`told`: of each rank how often it read the file, of rank 0 how often it renamed; how often that was not
    whole."""
    turns, reads = told[crew.rank][0], sum(t for r, (t, _) in told.items() if r != crew.rank)
    if bad := [r for r, (_, broken) in told.items() if broken]:
        return Finding(
            "rename",
            "fail",
            f"a file that is renamed over is not whole to {crew.named(bad)}",
            "take another file system for --run: records of checkpoints would be read half written",
            where=tuple(dict.fromkeys(crew.hosts[r] for r in bad)),
        )
    said = f"{turns} over a file" + (f", whole in each of {reads:,} reads of others" if reads else "")
    return Finding("rename", "ok", said, where=crew.nodes)


def _is_whole(file: Path) -> bool:
    try:
        held = file.read_bytes()
    except OSError as e:
        # On NFS the file that was opened may be gone from the server: whoever reads there tries again.
        return e.errno == errno.ESTALE
    return len(held) == _PAGE and held == held[:1] * _PAGE


def _one_link(shared: Shared, record: Path) -> Iterator[Finding]:
    """All ranks that came link their own record to one name, as owners of a stage do; one must get it."""
    try:
        told = shared.agreed("linked", _linked(record, shared.directory / "owner"))
    except OSError as e:
        shared.agreed("linked", None)
        said = f"no hard links in {shared.directory.parent} ({e.strerror}): they tell who owns a stage"
        yield Finding("one owner", "fail", said, "take another file system for --run")
        return
    if shared.crew.is_main and None not in told.values():
        yield judge_owners(told, shared.crew)


def judge_owners(told: Mapping[int, bool], crew: Crew) -> Finding:
    """`told`: of each rank whether its link is the one that was made."""
    owners = [r for r, got in told.items() if got]
    if len(owners) != 1:
        said = f"of {len(told)} hard links to one name {len(owners)} are made: two jobs could own a stage"
        return Finding("one owner", "fail", said, "take another file system for --run", where=crew.nodes)
    said = f"one of {len(told)} hard links to a name is made" if len(told) > 1 else "hard links are made"
    return Finding("one owner", "ok", said, where=crew.nodes)


def _linked(mine: Path, path: Path) -> bool:
    """As `trainer/engine/attempts.py` tells it: NFS may lose the answer of a success."""
    try:
        os.link(mine, path)
    except FileExistsError:
        return mine.stat().st_nlink == 2
    return True


def _write_speed(shared: Shared) -> Iterator[Finding]:
    """All ranks that came write at once, as they do with a checkpoint; rank 0 says how fast that is."""
    crew = shared.crew
    nbytes = min(WRITTEN, _WRITTEN_BY_ALL // len(crew.hosts))
    try:
        written, seconds = _write(shared.directory / f"bytes_{crew.rank}", nbytes)
    except OSError as e:
        shared.agreed("speed", None)
        yield _unwritable(shared.directory.parent, e)
        return
    told = shared.agreed("speed", [written, seconds])
    if crew.is_main:
        yield judge_writes({r: v for r, v in told.items() if v}, crew)


def judge_writes(told: Mapping[int, Sequence[float]], crew: Crew) -> Finding:
    """`told`: bytes and seconds of each rank."""
    speeds = {r: n / s for r, (n, s) in told.items()}
    total = sum(n for n, _ in told.values()) / max(s for _, s in told.values())
    usual = statistics.median(speeds.values())
    said = f"{gib(total)}/s with fsync" + (f", {len(speeds)} ranks at once" if len(speeds) > 1 else "")
    slow = [r for r, s in speeds.items() if s < _SLOW * usual]
    if slow:
        fix = "look at the mount and the network of that node: a checkpoint is as slow as its slowest rank"
        nodes = tuple(dict.fromkeys(crew.hosts[r] for r in slow))
        return Finding("write speed", "warn", f"{said}; slow: {crew.named(slow)}", fix, where=nodes)
    return Finding("write speed", "ok", said, where=crew.nodes)


def _write(path: Path, nbytes: int) -> tuple[int, float]:
    """Bytes and seconds, with fsync; fewer bytes where it takes long."""
    block = os.urandom(2**22)  # nothing that a file system could compress away
    began, written = time.monotonic(), 0
    with path.open("wb") as f:
        while written < nbytes and time.monotonic() - began < _WRITE_S:
            written += f.write(block[: nbytes - written])
        f.flush()
        os.fsync(f.fileno())
    return written, time.monotonic() - began


def _unwritable(run: Path, error: OSError) -> Finding:
    fixes = {
        errno.ENOSPC: "make room there (old runs; `keep_checkpoints`), or take another --run directory",
        errno.EDQUOT: "your quota there is used up: make room, or have it raised",
    }
    owner = ""
    with contextlib.suppress(OSError):
        held = standing(run).stat()
        owner = f" (owner {held.st_uid}, mode {held.st_mode & 0o7777:o}; you are {os.getuid()})"
    what = f"{standing(run)} cannot be written to: {error.strerror or error}{owner}"
    fix = fixes.get(error.errno or 0, "take a --run directory that you may write to, on all nodes")
    return Finding("run directory", "fail", what, fix)


def probe_of(run: Path, token: str) -> Path:
    """Its directory, whose name no other examination has."""
    return standing(run) / f".doctor-{token}"


def new_token() -> str:
    return uuid4().hex[:12]
