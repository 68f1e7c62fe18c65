"""A checkpoint, written beside the training: fragments are copied, and a thread of each rank writes them.

Each rank's thread writes its file, and then its record of it; rank 0's waits for all records, writes
COMPLETE.json, and gives the directory its name. No thread takes part in a collective: what became of them the
ranks tell one another between two steps.
"""

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import deepspeed
import torch

from data_pipeline.errors import DataError, PreflightError
from data_pipeline.manifest import json_bytes
from trainer.distributed import World, all_sum, gathered
from trainer.engine import fragment_files
from trainer.engine.checkpoint import (
    FORMAT,
    UNFINISHED,
    checkpoints_dir,
    directory_of,
    retain,
    verify_part,
)
from trainer.engine.commit import give_name, patiently, tell, tensors_of
from trainer.engine.fragments import Held, counts, held
from trainer.engine.staging import Staging
from trainer.engine.state import TrainState
from trainer.engine.swapped import on_a_drive
from trainer.mounts import refusal

_FROZEN = "frozen"
_LOOK_S = 0.02  # between two looks at what other ranks have written


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A committed checkpoint: of all ranks' `nbytes`, `seconds` after it was begun."""

    step: int
    nbytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One rank's share of one checkpoint: fragments in the host's memory, by key, for each directory."""

    state: TrainState
    fingerprints: dict[str, Any]
    counts: dict[str, Any]
    held: Held
    final: Path
    parts: dict[Path, dict[str, tuple[int, torch.Tensor]]]
    nbytes: int
    began: float


class _Abandoned(Exception):
    """This rank's thread was told not to wait for the others any longer."""


class Saver:
    """Writes the checkpoints of a stage. `keep` of them stay; `frozen` are its frozen weights, where a
    checkpoint has them already.

    `in_background`: `begin` copies and returns. The attribute of that name says whether training may go on
    then: it may not where the optimizer is on a drive and nothing is staged, as that is not copied to memory.
    `staging`: the copy goes to this directory on the node's own disk, not to the host's memory. `may_commit`
    is asked on rank 0 before a checkpoint gets its name, and `at_commit` is told its step and seconds once it
    has it, both by the thread; `before_write` is told its step on each rank, and may raise OSError. All but
    `abandon`, `tidy` and `stall` are for all ranks together.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        stage_dir: Path,
        world: World,
        *,
        keep: int,
        frozen: Path | None = None,
        in_background: bool = True,
        staging: Path | None = None,
        may_commit: Callable[[], bool] = lambda: True,
        at_commit: Callable[[int, float], object] = lambda step, seconds: None,
        before_write: Callable[[int], object] = lambda step: None,
    ) -> None:
        self._engine, self._world, self._keep = engine, world, keep
        self._stage_dir = stage_dir
        self._frozen = frozen.name if frozen else None
        self._has_frozen = frozen is not None
        self._staging = Staging(staging, stage_dir, world.rank) if staging else None
        self.in_background = in_background and (staging is not None or not on_a_drive(engine))
        self._copies = self.in_background and staging is None
        self._may_commit, self._at_commit, self._before_write = may_commit, at_commit, before_write
        self._room: dict[str, torch.Tensor] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._stop = threading.Event()
        self._flight: tuple[_Job, Future[None]] | None = None
        self._stalled = 0.0
        self._own_written = 0  # bytes since the start of the process; by the thread
        self._written = 0.0  # those of all ranks, as far as they told

    def begin(self, state: TrainState, fingerprints: dict[str, Any]) -> None:
        """The checkpoint of `state.step`, where none is on its way. Raises as `poll` does."""
        assert self._flight is None, "the one before is not there yet"
        began = time.monotonic()
        job = self._job(state, fingerprints, began)
        refused = self._prepare(job) or self._stage(job)
        (bad,) = all_sum(self._world, float(refused is not None))
        if bad:
            self._sweep(job)
            raise self._error(job, refused)
        self._flight = job, self._thread.submit(self._write, job)
        self._stalled += time.monotonic() - began

    def poll(self) -> Saved | None:
        """The checkpoint that was begun, once it is there.

        Raises PreflightError on all ranks where one of them could not write: nothing is left of it then.
        """
        if self._flight is None:
            return None
        began = time.monotonic()
        job, future = self._flight
        error = future.exception() if future.done() else None
        there = self._world.is_main and future.done() and error is None
        bad, committed, self._written = all_sum(
            self._world, float(error is not None), float(there), float(self._own_written)
        )
        if bad:
            self._discard(job, future)
            raise self._error(job, error)
        self._stalled += time.monotonic() - began
        if not committed:
            return None
        self._flight, self._has_frozen = None, True
        return Saved(step=job.state.step, nbytes=job.nbytes, seconds=time.monotonic() - job.began)

    def finish(self, grows: Callable[[], object] = lambda: None) -> Saved | None:
        """As `poll`, after waiting for it. `grows` is called whenever a rank has written more of it."""
        while self._flight is not None:
            began, written = time.monotonic(), self._written
            wait([self._flight[1]], timeout=_LOOK_S)
            self._stalled += time.monotonic() - began
            if saved := self.poll():
                return saved
            if self._written > written:
                grows()
        return None

    def tidy(self) -> None:
        """Let go of old checkpoints where a kill came between the last one and that (rank 0)."""
        if self._world.is_main:
            with contextlib.suppress(OSError):
                retain(checkpoints_dir(self._stage_dir), self._keep)

    def stall(self) -> float:
        """Seconds that training stood still for checkpoints since this was last asked."""
        stalled, self._stalled = self._stalled, 0.0
        return stalled

    def abandon(self) -> None:
        """For a rank that ends alone: what is not committed is none, and the process waits for nobody."""
        self._stop.set()
        self._thread.shutdown(wait=False)

    def _job(self, state: TrainState, fingerprints: dict[str, Any], began: float) -> _Job:
        ours = held(self._engine)
        final = directory_of(self._stage_dir, state.step)
        trained = final.with_name(final.name + UNFINISHED)
        frozen = final.with_name(_FROZEN + UNFINISHED)
        wanted = [trained] if self._has_frozen else [frozen, trained]
        parts: dict[Path, dict[str, tuple[int, torch.Tensor]]] = {part: {} for part in wanted}
        for f in ours.fragments:
            start, values = f.saved()
            part = parts.get(frozen if f.frozen else trained)
            if part is not None and values.numel():
                part[f.key] = start, self._copied(f.key, values)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        own = sum(v.numel() * v.element_size() for part in parts.values() for _, v in part.values())
        (nbytes,) = all_sum(self._world, float(own))
        return _Job(
            state=state,
            fingerprints=fingerprints,
            counts=counts(self._engine),
            held=ours,
            final=final,
            parts=parts,
            nbytes=int(nbytes),
            began=began,
        )

    def _copied(self, key: str, values: torch.Tensor) -> torch.Tensor:
        """In the host's memory, in the room of the last copy: on CUDA it is pinned, which takes long."""
        if not self._copies:
            return values
        room = self._room.get(key)
        if room is None or room.shape != values.shape or room.dtype != values.dtype:
            room = self._room[key] = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
        return room.copy_(values, non_blocking=True)

    def _prepare(self, job: _Job) -> OSError | None:
        """Empty directories to write into; what a kill left of earlier ones goes (rank 0)."""
        if not self._world.is_main:
            return None
        try:
            for left in checkpoints_dir(self._stage_dir).glob("*" + UNFINISHED):
                shutil.rmtree(left)
            for part in job.parts:
                part.mkdir(parents=True)
        except OSError as e:
            return e
        return None

    def _stage(self, job: _Job) -> OSError | None:
        try:
            if self._staging is not None:
                for part, fragments in job.parts.items():
                    self._staging.leave(part.name, fragments)
        except OSError as e:
            return e
        return None

    def _write(self, job: _Job) -> None:
        self._before_write(job.state.step)
        rank = f"rank_{self._world.rank:05d}"
        for part, fragments in job.parts.items():
            file = part / f"{rank}.safetensors"
            if self._staging:
                about = patiently(self._staging.move, part.name, file, self._wrote)
            else:
                about = patiently(fragment_files.write, file, fragments, self._wrote)
            patiently(tell, part / f"{rank}.json", about)
        if self._world.is_main:
            self._commit(job)

    def _wrote(self, nbytes: int) -> None:
        self._own_written += nbytes

    def _commit(self, job: _Job) -> None:
        *frozen, trained = job.parts
        for part in frozen:
            self._frozen = self._commit_frozen(part, job)
        files, tensors = self._records(trained, job)
        if not self._may_commit():
            raise PreflightError("another process has taken this stage over: the checkpoint was dropped.")
        record = {
            "format": FORMAT,
            "step": job.state.step,
            "world_size": self._world.size,
            "state": job.state.to_json(),
            "fingerprints": job.fingerprints,
            "counts": job.counts,
            "tied": job.held.tied,
            "frozen": self._frozen,
            "files": files,
            "tensors": tensors,
        }
        give_name(trained, job.final, record)
        with contextlib.suppress(OSError):  # the checkpoint is there; what stays too long goes with the next
            self._at_commit(job.state.step, time.monotonic() - job.began)
            retain(job.final.parent, self._keep)

    def _commit_frozen(self, part: Path, job: _Job) -> str | None:
        """The name of its directory, which is that of its contents; none where nothing is frozen."""
        files, tensors = self._records(part, job)
        if not tensors:
            shutil.rmtree(part)
            return None
        final = part.with_name(f"{_FROZEN}-{sha256(json_bytes(tensors)).hexdigest()[:16]}")
        try:
            verify_part(final)
            shutil.rmtree(part)
        except DataError:
            give_name(part, final, {"format": FORMAT, "files": files, "tensors": tensors})
        return final.name

    def _records(self, part: Path, job: _Job) -> tuple[dict[str, Any], dict[str, Any]]:
        """`files` and `tensors` of a COMPLETE.json, from the records of all ranks, as these appear."""
        records = {}
        for rank in range(self._world.size):
            path = part / f"rank_{rank:05d}.json"
            while not path.exists():
                if self._stop.wait(_LOOK_S):
                    raise _Abandoned
            records[path] = json.loads(path.read_text(encoding="utf-8"))
        for path in records:
            path.unlink()
        files = {
            path.with_suffix(".safetensors").name: {key: r[key] for key in ("nbytes", "sha256")}
            for path, r in records.items()
        }
        return files, tensors_of([r["fragments"] for r in records.values()], job.held.shapes)

    def _discard(self, job: _Job, future: Future[None]) -> None:
        self._stop.set()
        wait([future])
        self._flight = None
        all_sum(self._world, 0.0)  # nobody writes any more
        self._stop.clear()
        self._sweep(job)

    def _sweep(self, job: _Job) -> None:
        if self._staging:
            self._staging.clear()
        if self._world.is_main:
            for part in job.parts:
                shutil.rmtree(part, ignore_errors=True)

    def _error(self, job: _Job, error: BaseException | None) -> BaseException:
        """What ends this rank (all ranks): its own error, or what the first rank that has one says."""
        own = None if error is None or isinstance(error, _Abandoned) else self._reason(job, error)
        said = [text for text in gathered(self._world, own) if text]
        if error is not None and own is not None and not isinstance(error, OSError):
            return error
        return PreflightError(f"the checkpoint of step {job.state.step} could not be written: {said[0]}")

    def _reason(self, job: _Job, error: BaseException) -> str:
        if not isinstance(error, OSError):
            return f"{error} (rank {self._world.rank})"
        return (
            f"{refusal(error, job.final, f'rank {self._world.rank}, ')}\n"
            f"  It takes {job.nbytes:,} bytes of all ranks. Older ones go only once it is there.\n"
            "  Those before it are whole. Make room or mend the directory, and the same command goes on."
        )


def save(
    engine: deepspeed.DeepSpeedEngine,
    stage_dir: Path,
    state: TrainState,
    fingerprints: dict[str, Any],
    world: World,
    keep: int,
) -> Path:
    """Write and commit the checkpoint of `state.step` (all ranks), then let go of the oldest ones."""
    saver = Saver(engine, stage_dir, world, keep=keep, in_background=False)
    saver.begin(state, fingerprints)
    saver.finish()
    return directory_of(stage_dir, state.step)
