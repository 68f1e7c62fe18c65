"""A checkpoint stays while somebody reads it, whatever its training retains. Imports no torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.engine.pins import pinning
from trainer.observe.stage_files import checkpoints_of


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Pin what is meant by `path`, a checkpoint or a stage for its newest one; anything else needs no pin."""
    with pinning() as pins:
        pins.hold(_meant(path.resolve()))
        yield


def _meant(path: Path) -> list[Path]:
    if path.parent.name == "checkpoints" and path.is_dir():
        return [path]
    return [saved.path for saved in checkpoints_of(path)[:1]]
