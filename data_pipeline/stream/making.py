"""Planned rows to a batch: read, render, decode, collate. It holds no state, so it may run in any process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from data_pipeline.batch import Batch
from data_pipeline.errors import DataError, FoveaError
from data_pipeline.sample import Sample
from data_pipeline.stream.chat import Rendered, Unusable
from data_pipeline.stream.collate import Document, Piece, collate
from data_pipeline.stream.decode import DecodeError, Picture, blank, decode
from data_pipeline.stream.faults import BrokenSample, Fault
from data_pipeline.stream.order import chance
from data_pipeline.stream.rendering import Rendering
from data_pipeline.stream.rows import Placed, Row
from data_pipeline.stream.source import Source


@dataclass(frozen=True, eq=False)
class Made:
    """A micro-batch. `met`: for each picture and each unreadable sample, in order, None or what is wrong."""

    batch: Batch
    met: tuple[Fault | None, ...]


@dataclass(frozen=True, eq=False)
class Maker(Dataset[Made | FoveaError]):
    """`maker[rows]` is the micro-batch of these rows: a map-style dataset of torch.

    A sample that cannot be read, or a picture that cannot be decoded, is met by the rank that owns its row
    and by no other, so it must not move anything else. Its place is taken by what is the same on any rank:
    grey tiles of the planned size, or padding where even the text is gone, and not a single target.
    """

    sources: Mapping[str, Source]
    rendering: Rendering
    seed: int

    def __getitem__(self, rows: Sequence[Row] | FoveaError) -> Made | FoveaError:
        # An error travels as a value, one of the plan's too: torch would turn it into a traceback's text.
        try:
            return rows if isinstance(rows, FoveaError) else self.make(rows)
        except FoveaError as e:
            return e

    def make(self, rows: Sequence[Row]) -> Made:
        """Raises DataError where a shard is broken, or where the sizes planned with are not the samples'."""
        met: list[Fault | None] = []
        documents = [[self._document(placed, met) for placed in row] for row in rows]
        batch = collate(
            documents,
            tokenizer=self.rendering.tokenizer,
            image=self.rendering.image,
            image_tokens=self.rendering.image_tokens,
            sequence_length=self.rendering.budget.tokens,
        )
        return Made(batch, tuple(met))

    def _document(self, placed: Placed, met: list[Fault | None]) -> Document:
        source = self.sources[placed.source]
        try:
            sample = source.without_pixels(placed.index)
        except BrokenSample as e:
            met.append(_fault(source, placed, None, e.reason, e.detail))
            return self._empty(placed)
        rendered = self._render(sample, placed)
        tiles, bad = self._tiles(source, sample, rendered, placed, met)
        return Document(Piece(sample.id, placed.source, placed.index, rendered), tuple(tiles), muted=bad)

    def _render(self, sample: Sample, placed: Placed) -> Rendered:
        turns = int(chance(self.seed, f"{placed.source}/turns", placed.epoch, placed.index) * (1 << 53))
        try:
            pieces = self.rendering.pieces(sample, placed.variant, turns).pieces
        except Unusable:
            pieces = ()
        if placed.piece >= len(pieces) or len(pieces[placed.piece]) != placed.tokens:
            raise DataError(
                f"sample {sample.id} of source '{placed.source}' has not the sizes it was planned with.\n"
                "  Delete the recorded sizes of that source (RUN/sizes): they are measured again."
            )
        return pieces[placed.piece]

    def _tiles(
        self,
        source: Source,
        sample: Sample,
        document: Rendered,
        placed: Placed,
        met: list[Fault | None],
    ) -> tuple[list[Picture], bool]:
        """A picture for each tile; the second value says whether one of them had to be left grey."""
        image, split = self.rendering.image, document.tiles > 1
        tiles: list[Picture] = []
        bad = False
        for span, media in enumerate(document.images):
            try:
                tiles += decode(source.picture(placed.index, media), image, split)
                met.append(None)
            except (DecodeError, BrokenSample) as e:
                met.append(_fault(source, placed, sample.id, f"picture: {e.reason}", str(e)))
                grids = self.rendering.grids(sample, document)
                planned = grids[span * document.tiles : (span + 1) * document.tiles]
                tiles += [blank(image, grid) for grid in planned]
                bad = True
        return tiles, bad

    def _empty(self, placed: Placed) -> Document:
        """As many tokens as were planned, none of them a target and none of them a picture."""
        ids = np.full(placed.tokens, self.rendering.tokenizer.eos_id, dtype=np.int64)
        ids[0] = self.rendering.tokenizer.bos_id
        nothing = np.zeros(placed.tokens, dtype=np.int64)
        rendered = Rendered(ids, nothing.astype(np.bool_), nothing, images=())
        return Document(Piece("", placed.source, placed.index, rendered), muted=True)


def _fault(source: Source, placed: Placed, sample_id: str | None, reason: str, detail: str) -> Fault:
    shard, row = source.place(placed.index)
    return Fault(
        sample_id=sample_id, source=placed.source, shard=shard, row=row, reason=reason, detail=detail
    )
