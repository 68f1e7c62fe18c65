"""Pack the pieces of one window into rows that are full of tokens and even in patches.

Vector packing by dot products (R. Panigrahy et al., "Heuristics for vector bin packing", 2011), turned to
spreading: all rows stand open, and a piece goes where it adds least to the sum of squares of both costs. The
smallest pieces are kept back and close the gaps, best fit.
"""

import numpy as np

from data_pipeline.stream.budget import Budget

_CLOSING = (0.1, 0.2, 0.5)
"""Share of the tokens that is kept back, in small pieces. Less spreads patches better, more fills better."""
_FULL = 0.985
_NEVER = 1e18


def pack(tokens: np.ndarray, images: np.ndarray, patches: np.ndarray, budget: Budget) -> list[list[int]]:
    """Rows of piece numbers, each piece once, none beyond `budget`. The three are int64[P] of the pieces.

    Every piece must fit into an empty row. The result is the same on every platform: only elementwise IEEE
    arithmetic and stable sorts.
    """
    if not len(tokens):
        return []
    least = _least_rows(tokens, images, patches, budget)
    best: list[list[int]] = []
    for closing in _CLOSING:
        rows = _pack(tokens, images, patches, budget, least, closing)
        if not best or len(rows) < len(best):
            best = rows
        if least >= _FULL * len(best):
            break
    return [sorted(row) for row in best]


def _least_rows(tokens: np.ndarray, images: np.ndarray, patches: np.ndarray, budget: Budget) -> int:
    costs = ((tokens, budget.tokens), (images, budget.images), (patches, budget.patches))
    return max(-(-int(cost.sum()) // most) for cost, most in costs if most is not None)


def _pack(
    tokens: np.ndarray,
    images: np.ndarray,
    patches: np.ndarray,
    budget: Budget,
    least: int,
    closing: float,
) -> list[list[int]]:
    spread, order = _order(tokens, patches, budget.tokens, least, closing)
    by_tokens = 1 / budget.tokens**2
    by_patches = (least / max(1, int(patches.sum()))) ** 2
    rows = _Rows(budget, least)
    each = zip(tokens[order].tolist(), images[order].tolist(), patches[order].tolist(), strict=True)
    for n, (piece, (t, i, p)) in enumerate(zip(order.tolist(), each, strict=True)):
        if n < spread:
            score = rows.tokens * (t * by_tokens) + rows.patches * (p * by_patches)
        else:
            score = rows.patches * (p * by_patches) - rows.tokens / budget.tokens
        rows.put(piece, t, i, p, score)
    return rows.members


def _order(
    tokens: np.ndarray, patches: np.ndarray, length: int, least: int, closing: float
) -> tuple[int, np.ndarray]:
    """(how many pieces are spread, all pieces in order): large ones first, by whichever cost is larger; then
    the smallest, which hold `closing` of the tokens, by tokens."""
    size = np.maximum(tokens / length, patches * (least / max(1, int(patches.sum()))))
    order = np.argsort(-size, kind="stable")
    spread = int(np.searchsorted(np.cumsum(tokens[order]), int(tokens.sum()) * (1 - closing)))
    rest = order[spread:]
    order[spread:] = rest[np.argsort(-tokens[rest], kind="stable")]
    return spread, order


class _Rows:
    """Rows being filled, as columns. Rows that are not open yet count as full."""

    def __init__(self, budget: Budget, count: int) -> None:
        self.members: list[list[int]] = [[] for _ in range(count)]
        self.tokens = np.zeros(count)
        self.patches = np.zeros(count)
        self._images = np.zeros(count)
        self._budget = budget

    def put(self, piece: int, tokens: int, images: int, patches: int, score: np.ndarray) -> None:
        """Put the piece into the row with the lowest score that has room, or into a new one."""
        budget = self._budget
        full = self.tokens > budget.tokens - tokens
        if budget.patches is not None:
            full |= self.patches > budget.patches - patches
        if budget.images is not None:
            full |= self._images > budget.images - images
        score[full] = _NEVER
        row = int(score.argmin())
        if full[row]:
            row = self._open()
        self.members[row].append(piece)
        self.tokens[row] += tokens
        self.patches[row] += patches
        self._images[row] += images

    def _open(self) -> int:
        self.members.append([])
        self.tokens = np.append(self.tokens, 0.0)
        self.patches = np.append(self.patches, 0.0)
        self._images = np.append(self._images, 0.0)
        return len(self.members) - 1
