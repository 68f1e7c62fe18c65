"""Cut a document that is longer than a row into pieces, each of them a document of its own.

A cut falls between segments where it can, inside a text where it must, and inside an image span never.
"""

import numpy as np

from data_pipeline.errors import ConfigError
from data_pipeline.stream.chat import Rendered


def split(document: Rendered, row: int, bos_id: int) -> list[Rendered]:
    """Pieces of at most `row` tokens, each beginning with <bos>; one piece where `document` fits.

    The pieces hold all text once. Of an anchored document only the leading piece is kept, up to the last
    whole answer (none where the first answer does not fit).
    Raises ConfigError where an image span alone is longer than a row.
    """
    if len(document) <= row:
        return [document]
    if document.anchored:
        fitting = [c for c in document.cuts if c <= row]
        return [_part(document, 0, fitting[-1], bos_id)] if fitting else []
    pieces, start = [], 0
    while start < len(document) - 1:  # an <eos> left over alone would teach that a document may be empty
        end = _end(document, start, start + row - (start > 0))
        pieces.append(_part(document, start, end, bos_id))
        start = end
    return pieces


def _end(document: Rendered, start: int, limit: int) -> int:
    """Where the piece from `start` ends, at most at `limit`."""
    if limit >= len(document):
        return len(document)
    least = start + 1 if start == 0 else start  # <bos> alone is no piece
    if fitting := [c for c in document.cuts if least < c <= limit]:
        return fitting[-1]
    end = limit
    # A span is start, visual tokens, end: a cut falls inside one where either neighbour is visual.
    while end > least and document.image_ids[end - 1 : end + 1].any():
        end -= 1
    if end <= least:
        raise ConfigError(
            f"an image span takes {int((document.image_ids == 1).sum()) + 2} tokens and <bos> one, "
            f"a row has {limit - start + (start > 0)}: raise sequence_length or lower image.side"
        )
    return end


def _part(document: Rendered, start: int, end: int, bos_id: int) -> Rendered:
    """Tokens [start, end) with <bos> in front and pictures counted from 1."""
    ids, loss, image_ids = document.input_ids, document.loss, document.image_ids
    ids, loss, image_ids = ids[start:end], loss[start:end], image_ids[start:end]
    seen = np.unique(image_ids[image_ids > 0])
    if len(seen):
        image_ids = np.where(image_ids > 0, image_ids - (seen[0] - 1), 0)
    if start > 0:
        ids = np.concatenate([[bos_id], ids])
        loss = np.concatenate([[False], loss])
        image_ids = np.concatenate([[0], image_ids])
    images = tuple(document.images[k - 1] for k in seen)
    return Rendered(input_ids=ids, loss=loss, image_ids=image_ids, images=images, anchored=document.anchored)
