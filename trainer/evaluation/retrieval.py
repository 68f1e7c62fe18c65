"""Retrieval between pictures and texts: recall@k in both directions, several texts to a picture.

As papers on image-text retrieval count since Karpathy and Fei-Fei 2015: a picture that asks for its text
scores where any of its texts is among the first k. Of equal scores the lower index stands first.
"""

from collections.abc import Sequence

import numpy as np

from trainer.evaluation.classification import ranks
from trainer.evaluation.intervals import Array, Scored, ratio

TOPS = (1, 5, 10)


def score_retrieval(scores: Array, text_to_image: Sequence[int]) -> Scored:
    """`scores`: [texts, images]; `text_to_image[t]`: the picture of text t. Every picture has a text.

    A picture and its texts are one unit.
    """
    images = np.asarray(text_to_image)
    n = scores.shape[1]
    if len(set(text_to_image)) != n:
        raise ValueError("every picture needs a text: one without cannot be a query")
    by_text = ranks(scores, text_to_image)
    by_image = np.empty(n, dtype=np.int64)
    for image in range(n):
        own = np.flatnonzero(images == image)
        texts = np.broadcast_to(scores[:, image], (len(own), len(scores)))
        by_image[image] = ranks(texts, own.tolist()).min()
    terms = np.zeros((n, 2 * len(TOPS) + 2))
    for column, k in enumerate(TOPS):
        np.add.at(terms[:, column], images, by_text < k)
        terms[:, len(TOPS) + column] = by_image < k
    np.add.at(terms[:, -2], images, 1)
    terms[:, -1] = 1
    values: dict[str, float] = {k: float(v) for k, v in _of_sums(terms.sum(axis=0)).items()}
    values["texts"] = len(scores)
    return Scored(values, terms, range(n), _of_sums)


def _of_sums(sums: Array) -> dict[str, Array]:
    texts, images = sums[..., -2], sums[..., -1]
    return {
        **{f"image_retrieval_recall@{k}": ratio(sums[..., i], texts) for i, k in enumerate(TOPS)},
        **{f"text_retrieval_recall@{k}": ratio(sums[..., len(TOPS) + i], images) for i, k in enumerate(TOPS)},
    }
