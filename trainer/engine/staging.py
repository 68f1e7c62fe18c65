"""A rank's part of a checkpoint on its node's own disk, until it is copied into the run directory."""

import errno
import hashlib
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import ConfigError
from trainer.engine import fragment_files

_CHUNK = 1 << 23


def staging_directory(given: str | None) -> Path | None:
    """What a recipe names, with variables of this rank's environment. Raises ConfigError where one is not
    set, or the path is not absolute."""
    if given is None:
        return None
    path = Path(os.path.expandvars(given)).expanduser()
    if "$" in str(path) or not path.is_absolute():
        raise ConfigError(
            f"checkpoint_staging: {given!r} is {str(path)!r} on {socket.gethostname()}: an absolute path is "
            "needed, and its variables must be set.\n  Name a disk of the node, such as $TMPDIR or /local."
        )
    return path


class Staging:
    """Files of one rank in `directory`, which is on a disk of its own node. They bear the names of their
    stage, so that the next start writes over what a kill leaves."""

    def __init__(self, directory: Path, stage_dir: Path, rank: int) -> None:
        self._directory = directory
        self._prefix = f"fovea-{hashlib.sha256(os.fsencode(stage_dir.resolve())).hexdigest()[:12]}-{rank}"
        self._about: dict[str, dict[str, Any]] = {}

    def leave(self, part: str, fragments: Mapping[str, tuple[int, torch.Tensor]]) -> None:
        """The fragments of `part` on the node's disk, not yet safe from its end."""
        file, self._about[part] = self._file(part), {}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._about[part] = fragment_files.write(file, fragments, sync=False)
        except OSError as e:  # a write does not say where
            raise OSError(e.errno, e.strerror, e.filename or str(file)) from None

    def move(self, part: str, to: Path, wrote: Callable[[int], object]) -> dict[str, Any]:
        """Copy them into the file `to`, on disk on return, and return what `fragment_files.write` would.

        Raises OSError (EIO) where the node's disk gives back other bytes than were written to it.
        """
        file, about, sha = self._file(part), self._about[part], hashlib.sha256()
        with file.open("rb") as source, fragment_files.private(to) as f:
            while piece := source.read(_CHUNK):
                sha.update(piece)
                f.write(piece)
                wrote(len(piece))
            f.flush()
            os.fsync(f.fileno())
        if sha.hexdigest() != about["sha256"]:
            raise OSError(errno.EIO, "a disk gave back other bytes than were written", str(file))
        file.unlink()
        return about

    def clear(self) -> None:
        """Forget what was left and not moved."""
        for part in self._about:
            self._file(part).unlink(missing_ok=True)
        self._about = {}

    def _file(self, part: str) -> Path:
        return self._directory / f"{self._prefix}-{part}"
