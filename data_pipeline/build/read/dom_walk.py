"""The walk over a page's nodes: which of them are met, and where a block of text begins.

Half of a page's time would go here, and so `_walk.c` is the same class a second time. `pip install` compiles
it where there is a C compiler; where there is none, and where `_walk.c` has changed since, this one is taken.
"""

import importlib
from abc import ABC, abstractmethod
from typing import Any

from selectolax.lexbor import LexborNode

from data_pipeline.build.read.compile_walk import source_sum
from data_pipeline.build.read.dom_tables import (
    BLOCK,
    BREAK,
    CELL,
    DROP,
    FIRST_THAT_ENDS,
    FIRST_THAT_PARTS,
    HEADING,
    INLINE,
    KINDS,
    LINK,
    PLAIN,
    is_furniture,
)

# What is noted of a block of text where it begins.
HEADED, CAPTIONED, REPEATS = 1, 2, 4
MARK = "\0"  # the parser leaves none in a text
Attributes = dict[str, str | None]


class PlainWalk(ABC):
    """One walk: the texts met, each block's after a `MARK`, and for each mark what begins there.

    Nodes nest as deep as the page likes, so the way back is a list. A subclass says what is done at the
    kinds of nodes that are not as common as those here: `enter`, `leave`.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.begun: list[Any] = []  # what is said of the text after the mark, or what stands there instead
        self.preformatted: list[int] = []  # blocks whose white space stays
        self.open = False  # whether a block of text is being gathered
        self.heading = self.caption = self.link = 0  # what is said of a block that begins now
        self.repeats = 0  # whether the open block is made of links alone, as far as it goes
        self.pre = 0

    def below(self, root: LexborNode) -> None:
        path: list[tuple[LexborNode, int]] = []
        node = root.first_child
        while node is not None:
            text = node.text_content
            if text is not None:
                self._gather(text)
                after = node.next
            else:
                kind = KINDS[node.tag_id]
                if kind == PLAIN or (kind != DROP and self._enter(node, kind)):
                    path.append((node, kind))
                    after = node.first_child
                else:
                    after = node.next
            while after is None and path:
                node, kind = path.pop()
                self._leave(kind)
                after = node.next
            node = after

    @abstractmethod
    def enter(self, node: LexborNode, kind: int, attributes: Attributes) -> bool:
        """Whether the nodes below are to be walked."""

    @abstractmethod
    def leave(self, kind: int) -> None:
        """What is to be done behind the nodes below."""

    def _gather(self, text: str) -> None:
        if self.open:
            self.texts.append(text)
            if self.repeats and not self.link and not text.isspace():
                # Text outside of links in a block that began in one.
                self.begun[-1] = self.heading | self.caption
                self.repeats = 0
        elif not text.isspace():
            if self.pre:
                self.preformatted.append(len(self.begun))
            self.begun.append(self.heading | self.caption | self.link)
            self.texts += (MARK, text)
            self.open = True
            self.repeats = self.link

    def _enter(self, node: LexborNode, kind: int) -> bool:
        attributes = node.attributes
        if attributes and is_furniture(node, attributes):
            self.open = self.open and kind < FIRST_THAT_PARTS
            return False
        if kind in (BLOCK, HEADING):
            self.open = False
            self.heading = HEADED if kind == HEADING else 0
        elif kind == BREAK:
            self.texts.append("\n")
            return False
        elif kind == CELL:
            self.texts.append(" ")
        elif kind == LINK:
            # Without an address it is a place to go to, and its text is content.
            self.link = REPEATS if "href" in attributes else 0
        elif kind != INLINE:
            return self.enter(node, kind, attributes)
        return True

    def _leave(self, kind: int) -> None:
        if kind in (BLOCK, HEADING):
            self.open = False
            self.heading = 0
        elif kind == CELL:
            self.texts.append(" ")
        elif kind == LINK:
            self.link = 0
        elif kind >= FIRST_THAT_ENDS:
            self.leave(kind)


def _compiled() -> type[PlainWalk] | None:
    try:
        made = importlib.import_module("data_pipeline.build.read._walk")
    except ImportError:
        return None
    walk: type[PlainWalk] = made.Walk
    return walk if source_sum() == made.SOURCE_SUM else None


Walk = _compiled() or PlainWalk
