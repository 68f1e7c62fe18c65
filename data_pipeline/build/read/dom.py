"""A web page as its texts and images in reading order, by one walk over the DOM.

What is no content (navigation, hidden nodes, forms, repeated links) is left out; see dom_tables. Bytes of
images are not touched here: an image is the list of references under which it may be had.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from selectolax.lexbor import LexborDocumentOptions, LexborHTMLParser, LexborNode

from data_pipeline.build.cut import Block
from data_pipeline.build.read.dom_facts import Facts, facts_of, squeezed
from data_pipeline.build.read.dom_image import absolute, candidates, is_blank
from data_pipeline.build.read.dom_tables import (
    CAPTION,
    FIGURE,
    FIRST_THAT_PARTS,
    FORM,
    IMAGE,
    NOSCRIPT,
    PICTURE,
    PRE,
    SOURCE,
)
from data_pipeline.build.read.dom_tame import tame
from data_pipeline.build.read.dom_walk import CAPTIONED, HEADED, MARK, REPEATS, Walk
from data_pipeline.build.read.reading import Fault, Picture

# A block of links alone that comes so often in a page ("Read more", "Reply") belongs to its furniture.
REPEATED = 3
_CONTENT_OF_FORM = "h1, article, main"
_PARAGRAPHS_OF_FORM = 10
Attributes = dict[str, str | None]


class Text(NamedTuple):
    """One block of text. `caption`: of the figure whose image stands before it."""

    text: str
    heading: bool = False
    caption: bool = False
    repeats: bool = False  # made of links alone, and so left out where it comes REPEATED times


_SAID = [(bool(n & HEADED), bool(n & CAPTIONED), bool(n & REPEATS)) for n in range(8)]
_new = tuple.__new__  # a third of the time of `Text(...)`, and a page has hundreds
_WITHOUT_EVENTS = int(LexborDocumentOptions.WO_EVENTS)


class Image(NamedTuple):
    """One image: references, the best first, joined to the page's address where it is known."""

    urls: tuple[str, ...]
    alt: str | None = None
    fallback: bool = False  # of a `<noscript>`: a lazy image beside it is the same one


@dataclass(frozen=True)
class Page:
    facts: Facts
    blocks: list[Text | Image] = field(repr=False)


def read_page(page: str, url: str = "") -> Page:
    """The page at `url` (empty for a local file: references stay as they are written)."""
    tree = LexborHTMLParser(tame(page), options=_WITHOUT_EVENTS)
    facts = facts_of(tree, url)
    walk = _Walk(facts.base)
    if tree.body is not None:
        walk.below(tree.body)
    return Page(facts, walk.finished())


def blocks(page: Page, resolver: Callable[[Image], Picture | Fault]) -> Iterator[Block]:
    """The page's blocks with the pictures that `resolver` finds; a fault of it becomes a cut."""
    for block in page.blocks:
        if isinstance(block, Text):
            yield Block(text=block.text, heading=block.heading)
        else:
            found = resolver(block)
            yield Block(cut=found) if isinstance(found, Fault) else Block(picture=found)


class _Walk(Walk):  # type: ignore[misc,valid-type]
    """What the walk does at each kind of node but the most common ones, and what comes of it."""

    def __init__(self, base: str):
        super().__init__()
        self.base = base
        self.sources: list[str] = []
        self.figures: list[_Figure] = []
        # Where they begin and end, and their figures end.
        self.captions_above: list[tuple[int, int, int]] = []

    def finished(self) -> list[Text | Image]:
        """The blocks, without links that come again and again."""
        self.texts.append(MARK)  # ASCII at both ends
        joined = "".join(self.texts)
        texts = [text.strip(" ") for text in _single_spaced(joined).split(MARK)[1:-1]]
        if self.preformatted:
            as_written = joined.split(MARK)[1:-1]
            for n in self.preformatted:
                texts[n] = _lines(as_written[n])
        found: list[Text | Image] = [
            _new(Text, (text, *_SAID[begun])) if type(begun) is int else begun
            for begun, text in zip(self.begun, texts, strict=False)
        ]
        for above, below, stop in self.captions_above:
            found[above:stop] = found[below:stop] + found[above:below]
        links = Counter([b.text for b in found if type(b) is Text and b.repeats])
        often = {text for text, n in links.items() if n >= REPEATED}
        if not often:
            return found
        return [b for b in found if isinstance(b, Image) or not b.repeats or b.text not in often]

    def enter(self, node: LexborNode, kind: int, attributes: Attributes) -> bool:
        """Whether the nodes below are to be walked."""
        if kind >= FIRST_THAT_PARTS:
            self.open = False
            if kind != IMAGE:
                self.heading = 0
        return _ENTER[kind](self, node, attributes)

    def leave(self, kind: int) -> None:
        if kind >= FIRST_THAT_PARTS:
            self.open = False
            self.heading = 0
        if kind in _LEAVE:
            _LEAVE[kind](self)

    def _enter_pre(self, node: LexborNode, attributes: Attributes) -> bool:
        self.pre += 1
        return True

    def _enter_form(self, node: LexborNode, attributes: Attributes) -> bool:
        return _is_content(node)

    def _enter_figure(self, node: LexborNode, attributes: Attributes) -> bool:
        self.figures.append(_Figure(len(self.begun)))
        return True

    def _enter_caption(self, node: LexborNode, attributes: Attributes) -> bool:
        self.caption = CAPTIONED
        if self.figures:
            self.figures[-1].caption = len(self.begun)
        return True

    def _enter_picture(self, node: LexborNode, attributes: Attributes) -> bool:
        self.sources.clear()
        return True

    def _enter_source(self, node: LexborNode, attributes: Attributes) -> bool:
        offered = attributes.get("srcset") or attributes.get("data-srcset")
        if offered and _is_readable(attributes):
            self.sources.append(offered)
        return True

    def _leave_picture(self) -> None:
        self.sources.clear()

    def _leave_pre(self) -> None:
        self.pre -= 1

    def _leave_caption(self) -> None:
        self.caption = 0
        if self.figures:
            self.figures[-1].caption_end = len(self.begun)

    def _leave_figure(self) -> None:
        """A caption that its figure shows above the image comes after it in the sequence."""
        figure = self.figures.pop()
        start, end = figure.caption, figure.caption_end
        if start is None or Image in map(type, self.begun[figure.start : start]):
            return
        if Image in map(type, self.begun[end:]):
            self.captions_above.append((start, end, len(self.begun)))

    def _enter_image(self, node: LexborNode, attributes: Attributes) -> bool:
        urls = self._joined(candidates(attributes, self.sources))
        found = _new(Image, (urls, squeezed(attributes.get("alt")), False))
        last = self._last_image()
        # Some pages put the fallback before the lazy image, not after it.
        if last is not None and last.fallback and set(last.urls) & set(found.urls):
            self.begun[-1] = found
        else:
            self._put(found)
        return False

    def _enter_noscript(self, node: LexborNode, attributes: Attributes) -> bool:
        """Holds the image that a script would have loaded; its texts are for no reader."""
        for image in node.css("img"):
            given = image.attributes
            if "1" in (given.get("width"), given.get("height")):  # counts visitors
                continue
            urls = self._joined(candidates(given))
            last = self._last_image()
            if last is not None and not last.fallback:
                real = (u for u in last.urls if u and not is_blank(u))
                self.begun[-1] = last._replace(urls=tuple(dict.fromkeys((*real, *urls))))
            else:
                self._put(Image(urls, squeezed(given.get("alt")), fallback=True))
        return False

    def _last_image(self) -> Image | None:
        """The image after which no text came."""
        last = self.begun[-1] if self.begun else None
        return last if type(last) is Image else None

    def _put(self, image: Image) -> None:
        self.begun.append(image)
        self.texts.append(MARK)
        self.open = False

    def _joined(self, references: tuple[str, ...]) -> tuple[str, ...]:
        if not self.base:
            return references
        return tuple([absolute(r, self.base) for r in references])


@dataclass
class _Figure:
    """Where an open figure began among the blocks, and where its caption lies."""

    start: int
    caption: int | None = None
    caption_end: int = 0


_ENTER = {
    PRE: _Walk._enter_pre,
    IMAGE: _Walk._enter_image,
    PICTURE: _Walk._enter_picture,
    SOURCE: _Walk._enter_source,
    NOSCRIPT: _Walk._enter_noscript,
    FIGURE: _Walk._enter_figure,
    CAPTION: _Walk._enter_caption,
    FORM: _Walk._enter_form,
}
_LEAVE = {
    PICTURE: _Walk._leave_picture,
    PRE: _Walk._leave_pre,
    CAPTION: _Walk._leave_caption,
    FIGURE: _Walk._leave_figure,
}


def _is_readable(attributes: dict[str, str | None]) -> bool:
    """Whether a `<source>` is of a format that is read (as far as it says)."""
    return (attributes.get("type") or "image/jpeg").lower() in ("image/jpeg", "image/png", "image/webp")


def _is_content(form: LexborNode) -> bool:
    """Some systems wrap the whole page in one form; what else is a form is not text."""
    if form.css_first(_CONTENT_OF_FORM) is not None:
        return True
    return len(form.css("p")) > _PARAGRAPHS_OF_FORM


def _lines(text: str) -> str:
    """Preformatted text: its lines as they are, without blank ones at its ends."""
    lines = [line.rstrip() for line in text.expandtabs(4).splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        lines.pop(0)
    return "\n".join(lines)


def _single_spaced(text: str) -> str:
    """Every run of white space as one blank. Not by `split`, which makes a string of every word."""
    text = text.replace("\n", " ").replace("\xa0", " ")
    text = text.replace("\t", " ").replace("\r", " ").replace("\f", " ")
    # All but ASCII as 16 bits: UTF-8 would take twice as long.
    codec, unit = ("ascii", np.uint8) if text.isascii() else ("utf-16-le", np.dtype("<u2"))
    data = np.frombuffer(text.encode(codec), unit)
    blank = data == ord(" ")
    again = blank[1:] & blank[:-1]
    if not again.any():
        return text
    return data[:-1][~again].tobytes().decode(codec) + text[-1:]
