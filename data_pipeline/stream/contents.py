"""What a dataset says of itself, wherever it stands: its manifest, and what its exclusions leave.

Both are small beside the shards, so of a remote dataset they are copied to be read as on this machine.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.manifest import MANIFEST, Manifest, read_manifest
from data_pipeline.stream.place import Place
from data_pipeline.view import View


def manifest_at(place: Place) -> Manifest:
    """Raises DataError where there is none, or where it cannot be read."""
    with _copied(place, [MANIFEST]) as directory:
        return read_manifest(directory)


def view_at(place: Place, manifest: Manifest) -> View:
    """Raises DataError where a file of exclusions is missing or was altered."""
    if not manifest.exclusions:
        return View()
    with _copied(place, [e.path for e in manifest.exclusions]) as directory:
        return View.open(directory, manifest)


@contextlib.contextmanager
def _copied(place: Place, paths: Sequence[str]) -> Iterator[Path]:
    """A local directory that holds these files of the dataset; errors name the place, not the copy."""
    if place.local is not None:
        yield place.local
        return
    with tempfile.TemporaryDirectory(prefix="fovea-") as name:
        for path in paths:
            place.name(path)
            (Path(name) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(name) / path).write_bytes(place.read(path))
        try:
            yield Path(name)
        except DataError as e:
            raise DataError(str(e).replace(name, place.root)) from None
