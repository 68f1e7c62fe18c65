"""What ranks tell one another without a collective: notes in torch's store, that rank 0 keeps.

No call here waits for longer than it is told to, whoever of the others hangs, or never came.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from data_pipeline.errors import TransientError

_LOOK_S = 0.02  # between two looks at what others have posted, at first
_SELDOM_S = 0.5  # and at last


class Board:
    """One process's view of it. Raises TransientError where rank 0 does not answer.

    Later in the same process `init_world` meets the others by the same store.
    """

    def __init__(self, rank: int, ranks: int, seconds: float) -> None:
        """`seconds`: how long to try to reach rank 0."""
        self._rank = rank
        try:
            self._store = dist.TCPStore(  # type: ignore[attr-defined]  # torch documents it by this name
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                ranks,
                is_master=rank == 0 and not _of_torchrun(),
                timeout=timedelta(seconds=seconds),
                wait_for_workers=False,
                multi_tenant=True,
            )
        except dist.DistError:
            raise unreached(rank) from None

    def post(self, subject: str, value: Any) -> None:
        """Leave a note for all, as JSON."""
        with self._reaching():
            self._store.set(f"{subject}/{self._rank}", json.dumps(value))

    def read(self, subject: str, of: Iterable[int], until: float) -> dict[int, Any]:
        """The notes of ranks `of` by rank, but of those that have none by `until`, of time.monotonic()."""
        missing, found, pause = set(of), dict[int, Any](), _LOOK_S
        while missing:
            with self._reaching():
                found |= self._there(subject, missing)
            missing -= found.keys()
            left = until - time.monotonic()
            if not missing or left <= 0:
                break
            time.sleep(min(pause, left))
            pause = min(pause * 1.2, _SELDOM_S)
        return dict(sorted(found.items()))

    def _there(self, subject: str, of: Iterable[int]) -> dict[int, Any]:
        keys = {r: f"{subject}/{r}" for r in of}
        if not self._store.check(list(keys.values())):  # all at once, which a thousand ranks soon are
            keys = {r: key for r, key in keys.items() if self._store.check([key])}
        return {r: json.loads(self._store.get(key)) for r, key in keys.items()}

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except dist.DistError:
            lost = f"rank {self._rank} lost rank 0, which kept the notes of all at {_meeting_point()}."
            raise TransientError(lost) from None


def unreached(rank: int) -> TransientError:
    """What `rank` has to say where rank 0 did not answer it."""
    return TransientError(
        f"rank {rank} does not reach rank 0 at {_meeting_point()}.\n"
        "  Rank 0 must run, its name must resolve here, and no firewall may close the port."
    )


def _meeting_point() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def keeps_store() -> bool:
    """Whether rank 0 itself opens the port of the meeting point; under torchrun its agent has done so."""
    return not _of_torchrun()


def _of_torchrun() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
