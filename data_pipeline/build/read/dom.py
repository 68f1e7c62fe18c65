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
    BLOCK,
    BREAK,
    CAPTION,
    CELL,
    DROP,
    FIGURE,
    FIRST_THAT_ENDS,
    FORM,
    HEADING,
    IMAGE,
    INLINE,
    KINDS,
    LINK,
    NOSCRIPT,
    PICTURE,
    PLAIN,
    PRE,
    SOURCE,
    TEXT,
    is_furniture,
)
from data_pipeline.build.read.dom_tame import tame
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


_Said = tuple[bool, bool, bool]  # heading, caption, repeats
_MARK = "\0"  # the parser leaves none in a text
_new_text = tuple.__new__  # a third of the time of `Text(...)`, and a page has hundreds


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
    tree = LexborHTMLParser(tame(page), options=LexborDocumentOptions.WO_EVENTS)
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


class _Walk:
    """One walk: the texts met, with a `_MARK` after each block, and for each mark what ends there.

    Nodes nest as deep as the page likes, so the way back is a list.
    """

    def __init__(self, base: str):
        self.base = base
        self.texts: list[str] = []
        self.ends: list[_Said | Text | Image] = []  # what is said of the text before the mark, or a block
        self.open = False  # whether a block of text is being gathered
        self.plain = False  # whether it has text outside links
        self.heading = self.caption = self.link = False
        self.linked = 0  # blocks of links alone
        self.pre = 0
        self.sources: list[str] = []
        self.figures: list[_Figure] = []
        self.captions_above: list[
            tuple[int, int, int]
        ] = []  # where they begin and end, and their figures end

    def below(self, root: LexborNode) -> None:
        path: list[tuple[LexborNode, int]] = []
        push, pop, gather, kinds = path.append, path.pop, self.texts.append, KINDS
        node = root.first_child
        while node is not None:
            kind = kinds.get(node.tag_id, INLINE)
            if kind == TEXT:
                text = node.text_content or ""
                if self.open or not text.isspace():
                    gather(text)
                    self.open = True
                    self.plain = self.plain or not (self.link or text.isspace())
            elif kind == PLAIN or (kind != DROP and self._enter(node, kind)):
                child = node.first_child
                if child is not None:
                    push((node, kind))
                    node = child
                    continue
                if kind >= FIRST_THAT_ENDS:
                    _LEAVE[kind](self)
            after = node.next
            while after is None and path:
                node, kind = pop()
                if kind >= FIRST_THAT_ENDS:
                    _LEAVE[kind](self)
                after = node.next
            node = after

    def finished(self) -> list[Text | Image]:
        """The blocks, without links that come again and again."""
        self.flush()
        found: list[Text | Image] = []
        # What follows the last mark is white space.
        for end, text in zip(self.ends, _single_spaced("".join(self.texts)).split(_MARK), strict=False):
            if type(end) is tuple:
                heading, caption, repeats = end
                found.append(_new_text(Text, (text.strip(" "), heading, caption, repeats)))
            else:
                found.append(end)
        for above, below, stop in self.captions_above:
            found[above:stop] = found[below:stop] + found[above:below]
        if self.linked < REPEATED:
            return found
        often = Counter([b.text for b in found if type(b) is Text and b.repeats])
        return [b for b in found if not (type(b) is Text and b.repeats and often[b.text] >= REPEATED)]

    def flush(self) -> None:
        """Ends the block of text that is being gathered."""
        if self.open:
            said = (self.heading, self.caption, not self.plain)
            self.ends.append(Text(self._preformatted(), *said) if self.pre else said)
            self.texts.append(_MARK)
            self.linked += not self.plain
            self.open = self.plain = False

    def _preformatted(self) -> str:
        """The text of the open block, taken away from those whose white space is collapsed."""
        start = len(self.texts)
        while start and self.texts[start - 1] != _MARK:
            start -= 1
        text = _lines("".join(self.texts[start:]))
        del self.texts[start:]
        return text

    def _enter(self, node: LexborNode, kind: int) -> bool:
        """Whether the nodes below are to be walked."""
        attributes = node.attributes
        if attributes and is_furniture(node, attributes):
            if kind in _ENDS_TEXT:
                self.flush()
            return False
        if kind == BLOCK:
            if self.open:
                self.flush()
            self.heading = False
            return True
        return kind == INLINE or _ENTER[kind](self, node, attributes)

    def _enter_heading(self, node: LexborNode, attributes: Attributes) -> bool:
        self.flush()
        self.heading = True
        return True

    def _enter_pre(self, node: LexborNode, attributes: Attributes) -> bool:
        self._leave_block()
        self.pre += 1
        return True

    def _enter_form(self, node: LexborNode, attributes: Attributes) -> bool:
        self._leave_block()
        return _is_content(node)

    def _enter_link(self, node: LexborNode, attributes: Attributes) -> bool:
        self.link = "href" in attributes  # without one it is a place to go to, and its text is content
        return True

    def _enter_break(self, node: LexborNode, attributes: Attributes) -> bool:
        if self.open:
            self.texts.append("\n")
        return False

    def _enter_cell(self, node: LexborNode, attributes: Attributes) -> bool:
        self._leave_cell()
        return True

    def _enter_figure(self, node: LexborNode, attributes: Attributes) -> bool:
        self._leave_block()
        self.figures.append(_Figure(len(self.ends)))
        return True

    def _enter_caption(self, node: LexborNode, attributes: Attributes) -> bool:
        self._leave_block()
        self.caption = True
        if self.figures:
            self.figures[-1].caption = len(self.ends)
        return True

    def _enter_picture(self, node: LexborNode, attributes: Attributes) -> bool:
        self.sources.clear()
        return True

    def _enter_source(self, node: LexborNode, attributes: Attributes) -> bool:
        offered = attributes.get("srcset") or attributes.get("data-srcset")
        if offered and _is_readable(attributes):
            self.sources.append(offered)
        return True

    def _leave_block(self) -> None:
        if self.open:
            self.flush()
        self.heading = False

    def _leave_picture(self) -> None:
        self.sources.clear()

    def _leave_pre(self) -> None:
        self.flush()
        self.pre -= 1

    def _leave_link(self) -> None:
        self.link = False

    def _leave_cell(self) -> None:
        if self.open:
            self.texts.append(" ")

    def _leave_caption(self) -> None:
        self._leave_block()
        self.caption = False
        if self.figures:
            self.figures[-1].caption_end = len(self.ends)

    def _leave_figure(self) -> None:
        """A caption that its figure shows above the image comes after it in the sequence."""
        self._leave_block()
        figure = self.figures.pop()
        start, end = figure.caption, figure.caption_end
        if start is None or Image in map(type, self.ends[figure.start : start]):
            return
        if Image in map(type, self.ends[end:]):
            self.captions_above.append((start, end, len(self.ends)))

    def _enter_image(self, node: LexborNode, attributes: Attributes) -> bool:
        found = Image(self._joined(candidates(attributes, self.sources)), squeezed(attributes.get("alt")))
        last = self._last_image()
        # Some pages put the fallback before the lazy image, not after it.
        if last is not None and last.fallback and set(last.urls) & set(found.urls):
            self.ends[-1] = found
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
                self.ends[-1] = last._replace(urls=tuple(dict.fromkeys((*real, *urls))))
            else:
                self._put(Image(urls, squeezed(given.get("alt")), fallback=True))
        return False

    def _last_image(self) -> Image | None:
        """The image after which no text came."""
        last = self.ends[-1] if self.ends and not self.open else None
        return last if type(last) is Image else None

    def _put(self, image: Image) -> None:
        self.flush()
        self.ends.append(image)
        self.texts.append(_MARK)

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


_ENDS_TEXT = frozenset((BLOCK, HEADING, PRE, FIGURE, CAPTION, FORM, IMAGE))
_ENTER = {
    HEADING: _Walk._enter_heading,
    BREAK: _Walk._enter_break,
    CELL: _Walk._enter_cell,
    PRE: _Walk._enter_pre,
    LINK: _Walk._enter_link,
    IMAGE: _Walk._enter_image,
    PICTURE: _Walk._enter_picture,
    SOURCE: _Walk._enter_source,
    NOSCRIPT: _Walk._enter_noscript,
    FIGURE: _Walk._enter_figure,
    CAPTION: _Walk._enter_caption,
    FORM: _Walk._enter_form,
}
_LEAVE = {
    BLOCK: _Walk._leave_block,
    HEADING: _Walk._leave_block,
    FORM: _Walk._leave_block,
    PICTURE: _Walk._leave_picture,
    PRE: _Walk._leave_pre,
    LINK: _Walk._leave_link,
    CELL: _Walk._leave_cell,
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
    data = np.frombuffer(text.encode(), np.uint8)
    blank = data == ord(" ")
    again = blank[1:] & blank[:-1]
    if not again.any():
        return text
    return data[:-1][~again].tobytes().decode() + text[-1:]
