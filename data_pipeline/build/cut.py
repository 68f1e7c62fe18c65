"""Long documents become many samples: cut at headings, at a size, and where the split changes.

Train and held-out are decided by image (see split.py). A sample with images of both would carry a
held-out picture into training, so a document is cut between them and no sample ever mixes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from data_pipeline.build.read.reading import Fault, Picture
from data_pipeline.build.split import is_heldout


@dataclass(frozen=True, kw_only=True)
class Block:
    """One element of a document in reading order: text, an image, or an image that could not be used."""

    text: str | None = None
    heading: bool = False
    picture: Picture | None = None
    cut: Fault | None = None


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
