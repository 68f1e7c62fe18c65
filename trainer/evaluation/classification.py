"""Zero-shot classification: the class whose texts are nearest to the picture; top-1 and top-5.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 3.1.4: a
class is the mean of the normalised embeddings of its prompts ("a photo of a ...").
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainer.evaluation.intervals import Array, Scored, means

TOPS = (1, 5)


def class_embeddings(texts: Sequence[ArrayLike]) -> Array:
    """`texts[c]`: [prompts, dim] of class c -> [classes, dim], each of length 1."""
    return np.stack([_unit(_unit(np.asarray(t, dtype=np.float64)).mean(axis=0)) for t in texts])


def zero_shot_scores(images: ArrayLike, classes: Array) -> Array:
    """[images, dim] and [classes, dim] -> cosines [images, classes]."""
    return np.asarray(_unit(np.asarray(images, dtype=np.float64)) @ classes.T)


def ranks(scores: Array, labels: Sequence[int]) -> NDArray[np.int64]:
    """How many classes stand before each sample's own; of equal scores, the lower index stands first."""
    own = np.asarray(labels)
    value = scores[np.arange(len(scores)), own][:, None]
    before = np.arange(scores.shape[1]) < own[:, None]
    return np.asarray(((scores > value) | ((scores == value) & before)).sum(axis=1))


def score_classification(scores: Array, labels: Sequence[int]) -> Scored:
    """Shares. With five classes or fewer, top5 is 1."""
    rank = ranks(scores, labels)
    names = [f"top{k}" for k in TOPS]
    terms = np.stack([*(rank < k for k in TOPS), np.ones(len(rank))], axis=1).astype(np.float64)
    values = {name: float(terms[:, i].sum() / len(rank)) for i, name in enumerate(names)}
    return Scored(values, terms, range(len(rank)), means(names))


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))
