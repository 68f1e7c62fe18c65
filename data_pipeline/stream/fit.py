"""Make a document fit a packed row: whole, in pieces, shortened, or left out. No picture is ever cut.

A cut falls between segments where it can, and inside a text where it must. Each piece is a document of its
own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from data_pipeline.errors import ConfigError
from data_pipeline.stream.budget import Budget
from data_pipeline.stream.chat import Rendered

Policy = Literal["split", "shorten", "drop"]
POLICIES: tuple[Policy, ...] = ("split", "shorten", "drop")

CUT = "cut into pieces"
NO_TARGETS = "a part without targets left out"
NO_PICTURE = "a picture larger than a row left out"
SHORTENED = "shortened to a row"
TOO_MUCH = "more than a row holds"
TOO_LARGE = "a picture larger than a row"
NOTES = (CUT, NO_TARGETS, NO_PICTURE, SHORTENED, TOO_MUCH, TOO_LARGE)
"""All that `Fitted.note` may say. The last two: nothing is left."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """`patches[i]` is the number of patches of `pieces[i]`. `note` is None where the document is whole."""

    pieces: tuple[Rendered, ...]
    patches: tuple[int, ...]
    note: str | None = None


def fit(
    document: Rendered, budget: Budget, patches: Sequence[int], bos_id: int, policy: Policy = "split"
) -> Fitted:
    """Pieces of `document`, each within the whole budget, beginning with <bos> and with a target.

    `patches` has the patches of each tile, in order; it may be empty where the budget does not bound them.

        split    the pieces hold all text once, and all pictures that fit a row alone; of an anchored document
                 only the leading piece is kept, up to its last whole answer
        shorten  the leading part, up to its last whole answer where one fits, else cut inside a text
        drop     nothing of what does not fit whole

    Never a piece without targets: it is left out. Raises ConfigError for an unknown policy, and for rows of
    one token.
    """
    if policy not in POLICIES:
        raise ConfigError(f"policy: {policy!r} is none of {', '.join(POLICIES)}")
    if budget.tokens < 2:
        raise ConfigError("a row of one token holds <bos> alone")
    tiles = len(document.images) * document.tiles
    if len(patches) != tiles and (len(patches) or budget.patches is not None):
        raise ValueError(f"{len(patches)} counts of patches for {tiles} tiles")
    used, allowed = (len(document), tiles, sum(patches)), (budget.tokens, budget.images, budget.patches)
    if all(most is None or n <= most for n, most in zip(used, allowed, strict=True)):
        return Fitted((document,), (used[2],))
    if policy == "drop":
        return Fitted((), (), TOO_MUCH)
    shape = _Shape(document, budget, patches)
    if policy == "split" and not document.anchored:
        return _pieces(shape, bos_id)
    end = _shorter(shape, inside_text=policy == "shorten")
    if end is None:
        return Fitted((), (), TOO_LARGE if shape.has_too_large() else TOO_MUCH)
    return Fitted((shape.part(0, end, bos_id),), (shape.patches_in(0, end),), SHORTENED)


class _Shape:
    """Where a document may be cut, and how far a piece may reach. N: its spans.

    before   int[N]  the cut before each span
    after    int[N]  the cut after it; a position between the two is inside the span
    patches  int[N + 1]  patches of all spans before each, and of all
    """

    def __init__(self, document: Rendered, budget: Budget, patches: Sequence[int]) -> None:
        n = len(document.images)
        self.document, self.budget = document, budget
        at = np.flatnonzero(document.image_ids)
        spans = (document.image_ids[at] - 1) // document.tiles
        first = at[np.searchsorted(spans, np.arange(n), side="left")]
        last = at[np.searchsorted(spans, np.arange(n), side="right") - 1]
        self.after = last + 2
        # One token may close a span and open the next: it stays with the first, and `part` repeats it.
        shared = np.zeros(n, dtype=np.bool_)
        shared[1:] = self.after[:-1] == first[1:]
        self.before = first - 1 + shared
        each = np.zeros(n, dtype=np.int64)
        if len(patches):
            each = np.asarray(patches, dtype=np.int64).reshape(n, document.tiles).sum(axis=1)
        self.patches = np.concatenate([[0], np.cumsum(each)])

    def limit(self, start: int) -> int:
        """The last position where a piece from `start` may end; it may be inside a span."""
        first = int(np.searchsorted(self.before, start))
        spans = len(self.before)
        if self.budget.images is not None:
            spans = min(spans, first + self.budget.images // self.document.tiles)
        if self.budget.patches is not None:
            allowed = self.patches[first] + self.budget.patches
            spans = min(spans, int(np.searchsorted(self.patches, allowed, side="right")) - 1)
        end = min(len(self.document), start + self.budget.tokens - self._in_front(start))
        return min(end, int(self.before[spans])) if spans < len(self.before) else end

    def outside(self, position: int) -> int:
        """`position`, or the cut before the span that it is inside of."""
        span = int(np.searchsorted(self.before, position)) - 1
        inside = span >= 0 and position < self.after[span]
        return int(self.before[span]) if inside else position

    def part(self, start: int, end: int, bos_id: int) -> Rendered:
        """Tokens [start, end) as a document of its own, tiles counted from 1."""
        d = self.document
        ids, loss, image_ids = d.input_ids[start:end], d.loss[start:end], d.image_ids[start:end]
        if front := self._in_front(start):
            ids = np.concatenate([[bos_id], d.input_ids[start - front + 1 : start], ids])
            loss = np.concatenate([np.zeros(front, np.bool_), loss])
            image_ids = np.concatenate([np.zeros(front, np.int64), image_ids])
        first, last = (int(np.searchsorted(self.before, p)) for p in (start, end))
        image_ids = np.where(image_ids > 0, image_ids - first * d.tiles, 0)
        images = d.images[first:last]
        return replace(d, input_ids=ids, loss=loss, image_ids=image_ids, images=images, cuts=())

    def patches_in(self, start: int, end: int) -> int:
        first, last = np.searchsorted(self.before, (start, end))
        return int(self.patches[last] - self.patches[first])

    def has_too_large(self) -> bool:
        """Whether some span fits no row, even alone."""
        return any(self.limit(int(b)) < a for b, a in zip(self.before, self.after, strict=True))

    def _in_front(self, start: int) -> int:
        """Tokens that `part` puts before its own: <bos>, and the opening of a span whose own is shared."""
        return 0 if start == 0 else 1 + int(self.document.image_ids[start] > 0)


def _pieces(shape: _Shape, bos_id: int) -> Fitted:
    """The whole document in pieces, each as long as may be."""
    document = shape.document
    cuts = np.asarray(document.cuts, dtype=np.int64)
    pieces, patches, note = [], [], CUT
    start = 0
    while start < len(document) - 1:  # an <eos> left over alone would teach that a document may be empty
        limit = shape.limit(start)
        end = limit
        if limit < len(document):
            fitting = cuts[: np.searchsorted(cuts, limit, side="right")]
            end = int(fitting[-1]) if len(fitting) and fitting[-1] > start else shape.outside(limit)
            if end == start:
                span = int(np.searchsorted(shape.before, start))
                start, note = int(shape.after[span]), NO_PICTURE
                continue
        if document.loss[start:end].any():
            pieces.append(shape.part(start, end, bos_id))
            patches.append(shape.patches_in(start, end))
        elif note == CUT:
            note = NO_TARGETS
        start = end
    if not pieces:
        return Fitted((), (), TOO_LARGE if note == NO_PICTURE else TOO_MUCH)
    return Fitted(tuple(pieces), tuple(patches), note)


def _shorter(shape: _Shape, inside_text: bool) -> int | None:
    """Where the leading part ends that is kept, with its last target; None where it has none."""
    document = shape.document
    limit, first_target = shape.limit(0), int(document.loss.argmax())
    answers = [c for c in document.cuts if first_target < c <= limit] if document.anchored else []
    end = answers[-1] if answers else shape.outside(limit) if inside_text else 0
    targets = np.flatnonzero(document.loss[:end])
    if not len(targets):
        return None
    return int(targets[-1]) + 1
