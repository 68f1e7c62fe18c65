"""Long documents become many samples: cut at headings, at a size, and where the split changes.

Train and held-out are decided by image (see split.py). A sample with images of both would carry a
held-out picture into training, so a document is cut between them and no sample ever mixes.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_pipeline.build.read.reading import Fault, Picture
from data_pipeline.build.split import is_heldout
from data_pipeline.build.steps import record
from data_pipeline.sample import Media, Sample, Segment, content_id

HEADING = "heading"  # role of a heading's segment between the reader and the cut; it is not stored


@dataclass(frozen=True, kw_only=True)
class Block:
    """One element of a document in reading order: text, an image, or an image that could not be used."""

    text: str | None = None
    heading: bool = False
    picture: Picture | None = None
    sim: float | None = None  # likeness of the picture to a text of the document
    cut: Fault | None = None


@dataclass(frozen=True)
class Size:
    """How large a sample may be that is cut from a document; one of less text and no image is dropped."""

    max_chars: int
    max_images: int
    min_chars: int


class CutDocuments(PipelineStep):
    """Turns each document of the sources in `sizes` into its samples. Other sources pass as they are, and so
    does what is no web document: a crawl's PDF pages, a caption among documents."""

    type = "cut"
    name = "cut into samples"

    def __init__(self, sizes: Mapping[str, Size], heldout: float):
        super().__init__()
        self.sizes = sizes
        self.heldout = heldout

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        more = more_images = 0  # a document that becomes n samples counts as n read
        for doc in data:
            mark = doc.metadata
            if "read" in mark:
                mark["read"] += more
                mark["images_read"] += more_images
                more = more_images = 0
            elif mark["fault"] is None and (size := self._size(mark)) is not None:
                pieces = _samples(mark["sample"], size, self.heldout)
                assert pieces, "the steps before drop a document of which nothing is left"
                more += len(pieces) - 1
                more_images += sum(len(p.media) for p in pieces) - len(mark["sample"].media)
                for n, piece in enumerate(pieces):
                    yield self._document(doc, piece, n, size)
                continue
            elif mark["fault"] is None:
                record(mark, self.name)
            yield doc

    def _size(self, mark: dict[str, Any]) -> Size | None:
        return self.sizes.get(mark["source"]) if mark["sample"].kind in ("interleaved", "text") else None

    def _document(self, doc: Document, piece: Sample, n: int, size: Size) -> Document:
        where = f"{doc.metadata['where']}, part {n}" if n else doc.metadata["where"]
        # What was taken out of the document is listed once, with its first sample.
        mark = {**doc.metadata, "sample": piece, "where": where, "cuts": () if n else doc.metadata["cuts"]}
        mark["flow"] = () if n else mark["flow"]
        if piece.media or len(piece.text) >= size.min_chars:
            record(mark, self.name)
        else:
            detail = f"{len(piece.text)} characters and no image, min_chars is {size.min_chars}"
            mark["fault"] = Fault(
                reason="too little text", detail=detail, bad=False, file=mark["file"], where=where
            )
            mark["at"] = self.name
        return Document(text=piece.text or " ", id=piece.id, metadata=mark)


def _samples(document: Sample, size: Size, heldout: float) -> list[Sample]:
    blocks = [_block(document, s) for s in document.segments]
    runs = cut_document(blocks, max_chars=size.max_chars, max_images=size.max_images, heldout=heldout)
    return [_sample(document, n, run) for n, run in enumerate(runs)]


def _block(document: Sample, segment: Segment) -> Block:
    if segment.media is None:
        return Block(text=segment.text, heading=segment.role == HEADING)
    # An image that was not fetched has no bytes, and goes on as a reference.
    picture = Picture(document.media[segment.media], document.image_bytes[segment.media])
    return Block(picture=picture, sim=segment.sim)


def _sample(document: Sample, n: int, run: list[Block]) -> Sample:
    """The n-th sample of the document. A picture that comes twice in it is stored once."""
    number: dict[str, int] = {}
    media: list[Media] = []
    data: list[bytes | None] = []
    segments: list[Segment] = []
    for block in run:
        if block.picture is None:
            segments.append(Segment(type="text", text=block.text))
            continue
        key = block.picture.media.media_id
        if key not in number:
            number[key] = len(media)
            media.append(block.picture.media)
            data.append(block.picture.data)
        segments.append(Segment(type="image", media=number[key], sim=block.sim))
    return dataclasses.replace(
        document,
        id=content_id(document.id, "part", str(n)),
        kind="interleaved" if media else "text",
        segments=tuple(segments),
        media=tuple(media),
        image_bytes=tuple(data),
    )


def cut_document(
    blocks: Iterable[Block], *, max_chars: int, max_images: int, heldout: float
) -> Iterator[list[Block]]:
    """Runs of blocks, in order; each is one sample. Every block stands in exactly one run."""
    run: list[Block] = []
    chars = images = 0
    held: bool | None = None
    for block in (piece for b in blocks for piece in _pieces(b, max_chars)):
        size = len(block.text or "")
        splits = block.picture is not None and held not in (None, _held(block, heldout))
        full = chars + size > max_chars or (block.picture is not None and images == max_images)
        # Headings that follow one another (title, subtitle) stay with the text below them.
        chapter = block.heading and any(not b.heading for b in run)
        if run and (splits or full or chapter):
            # A heading just before the cut belongs to what follows.
            tail = len(run)
            while tail and run[tail - 1].heading and tail > 1 and not chapter:
                tail -= 1
            if all(b.heading for b in run[:tail]):
                tail = len(run)
            yield run[:tail]
            run = run[tail:]
            chars, images, held = sum(len(b.text or "") for b in run), 0, None
        run.append(block)
        chars += size
        if block.picture is not None:
            images += 1
            held = _held(block, heldout)
    if run:
        yield run


def _held(block: Block, heldout: float) -> bool:
    assert block.picture is not None
    return is_heldout(block.picture.media.media_id, heldout)


def _pieces(block: Block, max_chars: int) -> Iterator[Block]:
    """A text longer than `max_chars`, in pieces that end at a space."""
    text = block.text
    if text is None or len(text) <= max_chars:
        yield block
        return
    while text:
        end = len(text)
        if end > max_chars:
            end = text.rfind(" ", 1, max_chars + 1)
            end = end if end > 0 else max_chars
        yield Block(text=text[:end].strip(), heading=block.heading)
        text = text[end:].strip()
