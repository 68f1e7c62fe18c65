"""A row of a batch read back: its documents, their tokens as chips of text, and what no batch may hold."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Literal

import numpy as np

from data_pipeline.batch import IGNORE, PAD_DOCUMENT, Batch
from data_pipeline.stream.tokens import Tokenizer

_REPLACEMENT = "�"
_MOST_BYTES = 4  # of a character in UTF-8


@dataclass(frozen=True)
class Chip:
    """Neighbouring tokens that are shown as one: those of a character, or all of an image's.

    `at`: column of the first in the row. `position`: what the model is told. `ids`: of an image only the
    first. `image`: number of the tile in the batch, from 0.
    """

    kind: Literal["text", "special", "image"]
    text: str
    at: int
    position: int
    ids: tuple[int, ...]
    tokens: int
    target: bool = False
    image: int | None = None


@dataclass(frozen=True)
class Document:
    """Columns with one document id. `number` is that id, PAD_DOCUMENT of padding."""

    number: int
    chips: tuple[Chip, ...]
    tokens: int
    targets: int

    @property
    def images(self) -> tuple[int, ...]:
        """Its tiles, each once."""
        return tuple(dict.fromkeys(c.image for c in self.chips if c.image is not None))


def read_row(batch: Batch, row: int, tokenizer: Tokenizer) -> tuple[Document, ...]:
    """The documents of a row in order, padding as the last one."""
    text = _Texts(tokenizer)
    columns = _Columns(batch, row)
    found = []
    for number, at in groupby(range(columns.length), key=columns.document.__getitem__):
        span = list(at)
        start, stop = span[0], span[-1] + 1
        chips = () if number == PAD_DOCUMENT else tuple(_chips(columns, start, stop, text))
        found.append(Document(number, chips, stop - start, sum(columns.target[start:stop])))
    return tuple(found)


def wrong_labels(batch: Batch, row: int) -> int:
    """Targets of a row that are not the next token of the same document. Of a sound batch: 0."""
    labels, ids, documents = (x[row].numpy() for x in (batch.labels, batch.input_ids, batch.document_ids))
    nexts = np.append((documents[:-1] == documents[1:]) & (documents[1:] != PAD_DOCUMENT), False)
    right = nexts & (labels == np.append(ids[1:], IGNORE))
    return int(((labels != IGNORE) & ~right).sum())


def crossings(batch: Batch, row: int, mask: np.ndarray) -> int:
    """Pairs of a row's positions that see each other though their documents differ. Of a sound mask: 0.

    `mask` bool[T, T]: may the first attend to the second? Padding may see itself alone.
    """
    document = batch.document_ids[row].numpy()
    if mask.shape != (len(document), len(document)):
        raise ValueError(f"a mask of {mask.shape} for a row of {len(document)} positions")
    apart = document[:, None] != document[None, :]
    padding = document == PAD_DOCUMENT
    apart |= padding[:, None] & ~np.eye(len(document), dtype=np.bool_)
    return int((mask & apart).sum())


class _Columns:
    """What a row says of each of its columns, as plain lists."""

    def __init__(self, batch: Batch, row: int) -> None:
        self.ids: list[int] = batch.input_ids[row].tolist()
        self.position: list[int] = batch.positions[row].tolist()
        self.document: list[int] = batch.document_ids[row].tolist()
        self.image: list[int] = batch.image_ids[row].tolist()
        # The label stands where the token is predicted, one column before the token itself.
        self.target: list[bool] = [False, *(batch.labels[row, :-1] != IGNORE).tolist()]
        self.length = len(self.ids)


class _Texts:
    """Text of neighbouring ids, and names of special ones."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.names = {number: name for name, number in tokenizer.ids.items()}
        self.of = lru_cache(maxsize=1 << 16)(tokenizer.decode)


def _chips(columns: _Columns, start: int, stop: int, text: "_Texts") -> Iterator[Chip]:
    t = start
    while t < stop:
        if columns.image[t]:
            last, of = t + 1, columns.image
            while last < stop and of[last] == of[t]:
                last += 1
            chip = _chip(columns, t, last, "image", "", image=of[t] - 1)
        elif columns.ids[t] in text.names:
            chip = _chip(columns, t, t + 1, "special", text.names[columns.ids[t]])
        else:
            last = _character(columns, t, stop, text)
            chip = _chip(columns, t, last, "text", text.of(tuple(columns.ids[t:last])))
        yield chip
        t += chip.tokens


def _chip(
    columns: _Columns, t: int, last: int, kind: Literal["text", "special", "image"], text: str, **more: int
) -> Chip:
    ids = tuple(columns.ids[t : t + 1 if kind == "image" else last])
    return Chip(kind, text, t, columns.position[t], ids, last - t, any(columns.target[t:last]), **more)


def _character(columns: _Columns, t: int, stop: int, text: "_Texts") -> int:
    """The end of the fewest tokens from t on that are text: one may hold a part of a character's bytes."""
    for last in range(t + 1, min(stop, t + _MOST_BYTES) + 1):
        together = columns.ids[t:last]
        same = not any(columns.image[t:last]) and not any(i in text.names for i in together)
        if not same or columns.target[last - 1] != columns.target[t]:
            break
        if _REPLACEMENT not in text.of(tuple(together)):
            return last
    return t + 1
