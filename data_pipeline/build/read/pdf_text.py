"""The text of a PDF page: paragraphs with their boxes, in reading order, also where there are columns.

The order of the text layer is kept, except where lines stand in columns of prose: then column by column, with
what spans them in between. Tables stay as they are: their cells do not fill a column.
"""

from collections.abc import Iterator, Sequence
from ctypes import byref, c_int
from dataclasses import dataclass

import numpy as np
import pypdfium2 as pdfium
import pypdfium2.raw as raw

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 as fractions of the page, from its upper left corner

_GAP = 1.2  # heights of a line: a wider gap inside a line may divide columns
_GRID = 200  # places across a page where a gutter is looked for
_CROSSING = 0.15  # share of lines that may span the columns
_FILLED = 0.55  # of a column's width, at the median: lines of prose fill it, cells of a table do not
_LINES = 3  # in each column
_WORDS = 8  # heights of a line: a column is at least as wide, in fractions of a page
_FLAT = 1 / 800  # a line is at least as high as this: a point of a page


@dataclass(frozen=True)
class Frame:
    """From the page's own coordinates, whatever its box and rotation, to fractions of the page as seen."""

    origin: tuple[float, float]
    x: tuple[float, float]
    y: tuple[float, float]

    @classmethod
    def of(cls, page: pdfium.PdfPage) -> "Frame":
        size, step = 2**22, 100.0

        def at(x: float, y: float) -> tuple[float, float]:
            right, down = c_int(), c_int()
            raw.FPDF_PageToDevice(page, 0, 0, size, size, 0, x, y, byref(right), byref(down))
            return right.value / size, down.value / size

        (ox, oy), (ax, ay), (bx, by) = at(0, 0), at(step, 0), at(0, step)
        return cls((ox, oy), ((ax - ox) / step, (ay - oy) / step), ((bx - ox) / step, (by - oy) / step))

    def box(self, points: Sequence[tuple[float, float]]) -> Box:
        """The upright box about some points, within the page."""
        across = [self.origin[0] + p[0] * self.x[0] + p[1] * self.y[0] for p in points]
        down = [self.origin[1] + p[0] * self.x[1] + p[1] * self.y[1] for p in points]
        left, top, right, bottom = min(across), min(down), max(across), max(down)
        return tuple(min(max(v, 0.0), 1.0) for v in (left, top, right, bottom))  # type: ignore[return-value]


@dataclass(frozen=True)
class Line:
    text: str
    box: Box | None


def paragraphs(page: pdfium.PdfPage, frame: Frame) -> list[Line]:
    """Lines joined while they stand close together, in reading order."""
    text_page = page.get_textpage()
    try:
        lines = _in_order(text_page, frame)
    finally:
        text_page.close()
    blocks: list[Line] = []
    block: list[str] = []
    box: Box | None = None
    for line in lines:
        close = line.box is None or box is None or _continues(box, line.box)
        if block and (not line.text or not close):
            blocks.append(Line(" ".join(block), box))
            block, box = [], None
        if line.text:
            block.append(line.text)
            box = line.box if box is None else box if line.box is None else _union(box, line.box)
    if block:
        blocks.append(Line(" ".join(block), box))
    return blocks


def _in_order(text_page: pdfium.PdfTextPage, frame: Frame) -> list[Line]:
    lines: list[Line] = []
    pieces: list[Line] = []
    for whole, parts in _lines(text_page, frame):
        lines.append(whole)
        pieces += [p for p in parts if p.text and p.box]
    placed = [p.box for p in pieces if p.box]
    order = reading_order(placed)
    return lines if order is None else [pieces[i] for i in order]


def _lines(text_page: pdfium.PdfTextPage, frame: Frame) -> Iterator[tuple[Line, list[Line]]]:
    """Each line of the text layer, and the same line divided at wide gaps."""
    start = 0
    for text in text_page.get_text_range().replace("\r\n", "\n").split("\n"):
        words = _clean(text)
        boxes: list[Box] = []
        if words:
            for i in range(text_page.count_rects(start, len(text))):
                left, bottom, right, top = text_page.get_rect(i)
                boxes.append(frame.box(((left, bottom), (right, top))))
        whole = Line(words, _around(boxes))
        groups = _groups(boxes)
        yield whole, _divided(text_page, text, start, groups, frame) if len(groups) > 1 else [whole]
        start += len(text) + 2  # pdfium puts \r\n between lines


def _groups(boxes: list[Box]) -> list[Box]:
    """The boxes of a line, joined where no wide gap lies between them."""
    groups: list[Box] = []
    for box in boxes:
        near = groups and box[0] - groups[-1][2] < _GAP * max(box[3] - box[1], _FLAT)
        if near:
            groups[-1] = _union(groups[-1], box)
        else:
            groups.append(box)
    return groups


def _divided(
    text_page: pdfium.PdfTextPage, text: str, start: int, groups: list[Box], frame: Frame
) -> list[Line]:
    """The line's characters by group: each is of the group before it, unless it stands in the next."""
    parts = [""] * len(groups)
    at = 0
    for i, char in enumerate(text):
        if not char.isspace():
            left, bottom, right, top = text_page.get_charbox(start + i)
            box = frame.box(((left, bottom), (right, top)))
            middle = (box[0] + box[2]) / 2
            while at + 1 < len(groups) and middle >= groups[at + 1][0]:
                at += 1
        parts[at] += char
    return [Line(_clean(part), box) for part, box in zip(parts, groups, strict=True)]


def reading_order(boxes: Sequence[Box]) -> list[int] | None:
    """The order in which boxes of lines are read, where they stand in columns of prose; else None."""
    if len(boxes) < 2 * _LINES:
        return None
    array = np.array(boxes)
    order = _columns(array, np.arange(len(boxes)))
    return None if order is None else [int(i) for i in order]


def _columns(boxes: np.ndarray, rows: np.ndarray) -> np.ndarray | None:
    """`rows` of `boxes` float[n, 4] in reading order, divided at the best gutter; None if there is none."""
    if len(rows) < 2 * _LINES:
        return None
    at = _gutter(boxes[rows])
    if at is None:
        return None
    spanning = (boxes[rows, 0] < at) & (boxes[rows, 2] > at)
    left, right = rows[~spanning & (boxes[rows, 2] <= at)], rows[~spanning & (boxes[rows, 0] >= at)]
    middle = (boxes[:, 1] + boxes[:, 3]) / 2
    first, second = _one_side(boxes, left, middle), _one_side(boxes, right, middle)
    if first is None or second is None or not _side_by_side(boxes[left], boxes[right]):
        return None
    found: list[np.ndarray] = []
    above = -1.0
    for span in [*sorted(rows[spanning], key=lambda i: middle[i]), None]:
        below = 2.0 if span is None else middle[span]
        found += [side[(middle[side] > above) & (middle[side] <= below)] for side in (first, second)]
        if span is not None:
            found.append(np.array([span]))
        above = below
    return np.concatenate(found)


def _one_side(boxes: np.ndarray, rows: np.ndarray, middle: np.ndarray) -> np.ndarray | None:
    """The lines of one side in order, where they are one column of prose or several."""
    if _is_column(boxes[rows]):
        line = np.round(middle[rows] / (2 * _FLAT))
        return rows[np.lexsort((boxes[rows, 0], line))]
    return _columns(boxes, rows)


def _gutter(boxes: np.ndarray) -> float | None:
    """The middle of the widest strip that the fewest lines cross; None where too many cross every one."""
    low, high = boxes[:, 0].min(), boxes[:, 2].max()
    places = np.linspace(low + 0.15 * (high - low), high - 0.15 * (high - low), _GRID)
    crossing = ((boxes[:, 0, None] < places) & (boxes[:, 2, None] > places)).sum(0)
    fewest = crossing.min()
    if fewest > _CROSSING * len(boxes):
        return None
    free = np.flatnonzero(crossing == fewest)
    runs = np.split(free, np.flatnonzero(np.diff(free) > 1) + 1)
    longest = max(runs, key=len)
    return float(places[longest[len(longest) // 2]])


def _is_column(boxes: np.ndarray) -> bool:
    if len(boxes) < _LINES:
        return False
    width = boxes[:, 2].max() - boxes[:, 0].min()
    line = np.median(boxes[:, 2] - boxes[:, 0])
    return bool(line >= max(_FILLED * width, _WORDS * np.median(boxes[:, 3] - boxes[:, 1])))


def _side_by_side(a: np.ndarray, b: np.ndarray) -> bool:
    """Half of the shorter column stands beside the other."""
    top, bottom = max(a[:, 1].min(), b[:, 1].min()), min(a[:, 3].max(), b[:, 3].max())
    heights = [c[:, 3].max() - c[:, 1].min() for c in (a, b)]
    return bool(bottom - top >= 0.5 * min(heights))


def _clean(text: str) -> str:
    return " ".join(text.replace("\x00", "").replace("\ufffe", "-").split())


def _continues(block: Box, line: Box) -> bool:
    """The line stands below the block at less than one line's height, and in its column."""
    size = max(line[3] - line[1], _FLAT)
    return -size < line[1] - block[3] < size and line[0] < block[2] and line[2] > block[0]


def _union(a: Box, b: Box) -> Box:
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def _around(boxes: Sequence[Box]) -> Box | None:
    found: Box | None = None
    for box in boxes:
        found = box if found is None else _union(found, box)
    return found
