"""A built dataset as numbered samples and images, in the order that decides which of two copies stays.

Held-out samples come first, so that a copy between the splits is taken out of training; then the sources in
the order of the recipe, shards by path, rows. Only the columns asked for are read, from mapped files.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest, Shard
from data_pipeline.view import Exclusion, View

_DOCUMENTS = ("interleaved", "pdf")
_OPEN_FILES = 64


@dataclass(frozen=True)
class Block:
    """One record batch: its samples are `first_row`..., their images `first_image`... of the corpus."""

    shard: Shard
    number: int
    first_row: int
    first_image: int
    rows: int


@dataclass(frozen=True)
class MediaBatch:
    """The images of one block that are still shown, as columns of equal length n."""

    block: Block
    image: np.ndarray  # int64[n]: number in the corpus
    media_id: list[str]
    url: list[str | None]
    phash: list[int | None]


class Corpus:
    """`shown_rows` and `shown_images` say what the steps so far have left; each takes two bytes in all."""

    def __init__(self, directory: Path, shards: Sequence[Shard], view: View | None = None):
        self.directory = directory
        self.shards = tuple(shards)
        self._readers: dict[str, pa.RecordBatchFileReader] = {}
        self.blocks: list[Block] = []
        rows = images = 0
        for shard in self.shards:
            for number in range(self._reader(shard).num_record_batches):
                media = self._batch(shard, number).column("media")
                self.blocks.append(Block(shard, number, rows, images, len(media)))
                rows += len(media)
                images += len(media.flatten())
        self._first_rows = [b.first_row for b in self.blocks]
        self._first_images = [b.first_image for b in self.blocks]
        self.shown_rows = np.ones(rows, bool)
        self.shown_images = np.ones(images, bool)
        if view:
            self._hide(view)

    @classmethod
    def of(cls, directory: Path, manifest: Manifest, view: View | None = None) -> "Corpus":
        """The Arrow shards of a dataset under `view` (default: what the manifest excludes so far)."""
        order = {s["name"]: i for i, s in enumerate(manifest.recipe.get("sources", ()))}
        shards = sorted(
            manifest.shards(format="arrow"),
            key=lambda s: (s.split != "heldout", order.get(s.source, len(order)), s.source, s.path),
        )
        return cls(directory, shards, View.open(directory, manifest) if view is None else view)

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Shard, dict[str, Any]]]:
        """(number, shard, row) of the samples that are shown; images that are not are still in `media`."""
        for block in self.blocks:
            for k, row in enumerate(self.batch(block).select(list(columns)).to_pylist()):
                if self.shown_rows[block.first_row + k]:
                    yield block.first_row + k, block.shard, row

    def media(self) -> Iterator[MediaBatch]:
        for block in self.blocks:
            media = self.batch(block).column("media").flatten()
            image = block.first_image + np.flatnonzero(
                self.shown_images[block.first_image : block.first_image + len(media)]
            )
            media = media.take(pa.array(image - block.first_image))
            columns = (media.field(name).to_pylist() for name in ("media_id", "url", "phash"))
            yield MediaBatch(block, image, *columns)

    def row(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        block = self._block_with(row)
        one = self.batch(block).select(list(columns)).slice(row - block.first_row, 1)
        return one.to_pylist()[0]

    def is_heldout(self, image: int) -> bool:
        return self._block_of(image).shard.split == "heldout"

    def is_heldout_row(self, row: int) -> bool:
        return self._block_with(row).shard.split == "heldout"

    def locate(self, image: int) -> tuple[int, int]:
        """(sample, position in its `media`) of an image."""
        block = self._block_of(image)
        column = self.batch(block).column("media")
        offsets = column.offsets.to_numpy() - column.offsets[0].as_py()
        k = int(np.searchsorted(offsets, image - block.first_image, side="right")) - 1
        return block.first_row + k, image - block.first_image - int(offsets[k])

    def picture(self, image: int) -> bytes | None:
        """The encoded bytes of an image."""
        block = self._block_of(image)
        return self.batch(block).column("images").flatten()[image - block.first_image]["bytes"].as_py()

    def describe(self, image: int) -> tuple[str, str]:
        """(id of the sample, media_id) of an image."""
        row, k = self.locate(image)
        found = self.row(row, ("id", "media"))
        return found["id"], found["media"][k]["media_id"]

    def exclude_row(self, row: int, reason: str, detail: str) -> Exclusion:
        """Hide a sample and its images from the steps that follow."""
        first, count = self.images_of(row)
        self.shown_rows[row] = False
        self.shown_images[first : first + count] = False
        return Exclusion(self.row(row, ("id",))["id"], None, reason, detail)

    def exclude_image(self, image: int, reason: str, detail: str) -> Exclusion:
        """Hide an image, under whatever number its sample shows it; a caption or dialogue goes with it."""
        row, k = self.locate(image)
        first, count = self.images_of(row)
        found = self.row(row, ("id", "kind", "media"))
        media_id = found["media"][k]["media_id"]
        for i, media in enumerate(found["media"]):
            if media["media_id"] == media_id:
                self.shown_images[first + i] = False
        if found["kind"] not in _DOCUMENTS:
            self.shown_rows[row] = False
            self.shown_images[first : first + count] = False
        return Exclusion(found["id"], media_id, reason, detail)

    def batch(self, block: Block) -> pa.RecordBatch:
        return self._batch(block.shard, block.number)

    def _block_with(self, row: int) -> Block:
        return self.blocks[bisect_right(self._first_rows, row) - 1]

    def _block_of(self, image: int) -> Block:
        return self.blocks[bisect_right(self._first_images, image) - 1]

    def images_of(self, row: int) -> tuple[int, int]:
        """(number of the sample's first image, how many it has)."""
        block = self._block_with(row)
        column = self.batch(block).column("media")
        k = row - block.first_row
        start, end = column.offsets[k].as_py(), column.offsets[k + 1].as_py()
        return block.first_image + start - column.offsets[0].as_py(), end - start

    def _batch(self, shard: Shard, number: int) -> pa.RecordBatch:
        try:
            return self._reader(shard).get_batch(number)
        except (pa.ArrowInvalid, OSError) as e:
            raise _unreadable(self.directory / shard.path, e) from None

    def _reader(self, shard: Shard) -> pa.RecordBatchFileReader:
        if (reader := self._readers.get(shard.path)) is None:
            if len(self._readers) >= _OPEN_FILES:
                self._readers.clear()
            try:
                reader = pa.ipc.open_file(pa.memory_map(str(self.directory / shard.path)))
            except (pa.ArrowInvalid, OSError) as e:
                raise _unreadable(self.directory / shard.path, e) from None
            self._readers[shard.path] = reader
        return reader

    def _hide(self, view: View) -> None:
        for row, _, found in self.rows(("id", "media")):
            first, count = self.images_of(row)
            if found["id"] in view.samples:
                self.shown_rows[row] = False
                self.shown_images[first : first + count] = False
            for i, media in enumerate(found["media"]):
                if media["media_id"] in view.images.get(found["id"], {}):
                    self.shown_images[first + i] = False


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"shard {path} cannot be read: {error}\n  Prove the dataset:  fovea data verify")
