"""Caption metrics as the COCO caption benchmark counts them: BLEU, ROUGE-L, CIDEr; and exact match.

Papineni et al. 2002, "BLEU"; Lin 2004, "ROUGE"; Vedantam et al. 2015, "CIDEr: consensus-based image
description evaluation". What the benchmark calls CIDEr is close to the paper's CIDEr-D: clipped counts, a
Gaussian on the length difference, times ten, no stemming.

The metrics take tokens: `hyps[i]` is the caption of image i, `refs[i]` its references. `tokenize` makes them.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.evaluation.intervals import Array, Scored, ratio
from trainer.evaluation.ptb import tokenize

Tokens = Sequence[str]
Gram = tuple[str, ...]

ORDERS = 4
"""Longest n-gram of BLEU and CIDEr."""
CIDER_SIGMA = 6.0
ROUGE_BETA = 1.2
# The benchmark's guards against 0 / 0: a caption without a match scores almost nothing instead of nothing.
BLEU_SMALL, BLEU_TINY = 1e-9, 1e-15


def exact_match(hyps: Sequence[str], refs: Sequence[Sequence[str]]) -> float:
    """Share of captions that equal one of their references, apart from space around them."""
    _check(hyps, refs)
    hits = sum(h.strip() in {r.strip() for r in rs} for h, rs in zip(hyps, refs, strict=True))
    return hits / len(hyps)


# --- BLEU -----------------------------------------------------------------------------------------


def bleu(hyps: Sequence[Tokens], refs: Sequence[Sequence[Tokens]]) -> list[float]:
    """BLEU-1 .. BLEU-4 of the corpus: matches, lengths and closest reference lengths are summed first.

    One image's own score is `bleu([hyp], [refs])`.
    """
    _check(hyps, refs)
    sums = np.array([_bleu_counts(h, rs) for h, rs in zip(hyps, refs, strict=True)]).sum(axis=0)
    return [float(score) for score in _bleu_of_sums(sums.astype(np.float64))]


def _bleu_counts(hyp: Tokens, references: Sequence[Tokens]) -> list[int]:
    """What one image adds: matched n-grams by order, n-grams by order, length, closest reference length."""
    hyp, references = _words(hyp), [_words(r) for r in references]
    matched, guessed = [], []
    for n in range(1, ORDERS + 1):
        grams = _grams(hyp, n)
        most: Counter[Gram] = Counter()
        if grams:
            for r in references:
                most |= _grams(r, n)
        matched.append((grams & most).total())
        guessed.append(max(0, len(hyp) - n + 1))
    # Of two references equally close, the shorter one.
    closest = min((abs(len(r) - len(hyp)), len(r)) for r in references)[1]
    return [*matched, *guessed, len(hyp), closest]


def _bleu_of_sums(sums: Array) -> list[Array]:
    """[..., 10] sums of `_bleu_counts` -> BLEU-1 .. BLEU-4, each [...]."""
    length_ratio = (sums[..., -2] + BLEU_TINY) / (sums[..., -1] + BLEU_SMALL)
    brevity = np.where(length_ratio < 1, np.exp(1 - 1 / length_ratio), 1.0)
    scores, product = [], np.ones(sums.shape[:-1])
    for n in range(ORDERS):
        product = product * (sums[..., n] + BLEU_TINY) / (sums[..., ORDERS + n] + BLEU_SMALL)
        scores.append(brevity * product ** (1 / (n + 1)))
    return scores


# --- ROUGE-L --------------------------------------------------------------------------------------


def rouge_l(hyps: Sequence[Tokens], refs: Sequence[Sequence[Tokens]]) -> float:
    """The mean over images of the F-score of the longest common subsequence.

    The best precision and the best recall may come from two references, as in the benchmark.
    """
    _check(hyps, refs)
    return sum(_rouge_l(h, rs) for h, rs in zip(hyps, refs, strict=True)) / len(hyps)


def _rouge_l(hyp: Tokens, references: Sequence[Tokens]) -> float:
    # To the benchmark an empty caption is one empty word, which another empty caption has, too.
    hyp, references = hyp or [""], [r or [""] for r in references]
    common = [_longest_common(hyp, r) for r in references]
    precision = max(c / len(hyp) for c in common)
    recall = max(c / len(r) for c, r in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    beta2 = ROUGE_BETA**2
    return (1 + beta2) * precision * recall / (recall + beta2 * precision)


def _longest_common(a: Tokens, b: Tokens) -> int:
    """Length of the longest common subsequence; one row of the table at a time."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            above = row[j]
            row[j] = diagonal + 1 if x == y else max(above, row[j - 1])
            diagonal = above
    return row[-1]


# --- CIDEr ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cider:
    """`score` is the mean of `per_image`. Both are ten times the mean cosine, as COCO reports them."""

    score: float
    per_image: list[float]


def cider(hyps: Sequence[Tokens], refs: Sequence[Sequence[Tokens]]) -> Cider:
    """CIDEr. Document frequencies come from `refs` itself: the score of an image depends on the whole set,
    and a set of one image scores 0 (every word is in every document)."""
    _check(hyps, refs)
    hyps, refs = [_words(h) for h in hyps], [[_words(r) for r in rs] for rs in refs]
    documents: Counter[Gram] = Counter()
    for references in refs:
        documents.update({g for r in references for n in range(1, ORDERS + 1) for g in _grams(r, n)})
    log_images = math.log(len(refs))

    def weigh(tokens: Tokens) -> list[dict[Gram, float]]:
        """tf-idf of the n-grams, by order. tf is the plain count: the cosine's norm divides it."""
        counts = [_grams(tokens, n) for n in range(1, ORDERS + 1)]
        return [
            {g: c * (log_images - math.log(max(1, documents[g]))) for g, c in cs.items()} for cs in counts
        ]

    scores = []
    for hyp, references in zip(hyps, refs, strict=True):
        ours = weigh(hyp)
        total = sum(_similarity(ours, len(hyp), weigh(r), len(r)) for r in references)
        scores.append(10 * total / len(references))
    return Cider(sum(scores) / len(scores), scores)


def _similarity(
    hyp: list[dict[Gram, float]], hyp_length: int, ref: list[dict[Gram, float]], ref_length: int
) -> float:
    """The mean over orders of the clipped cosine, damped by the difference in length."""
    cosines = 0.0
    for h, r in zip(hyp, ref, strict=True):
        # Clipping by the reference: repeating a rare word gains nothing.
        dot = sum(min(weight, r[g]) * r[g] for g, weight in h.items() if g in r)
        norm = math.sqrt(sum(w * w for w in h.values())) * math.sqrt(sum(w * w for w in r.values()))
        cosines += dot / norm if norm else 0.0
    # The benchmark counts a caption's length in bigrams: an empty one is as long as one word.
    difference = max(0, hyp_length - 1) - max(0, ref_length - 1)
    return cosines / ORDERS * math.exp(-(difference**2) / (2 * CIDER_SIGMA**2))


# --- all of them ----------------------------------------------------------------------------------


def score_captions(captions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]]) -> Scored:
    """CIDEr, BLEU and ROUGE-L of raw captions, as the benchmark reports them (CIDEr 0.63, not 63).

    The unit of the intervals is the image. CIDEr's word weights stay those of the whole set: a resample has
    images twice, and weights of its own would make another metric of every resample.
    """
    hyps = [tokenize(captions[i]) for i in references]
    refs = [[tokenize(c) for c in of_one] for of_one in references.values()]
    _check(hyps, refs)
    ciders = cider(hyps, refs)
    pairs = list(zip(hyps, refs, strict=True))
    rouges = [_rouge_l(h, rs) for h, rs in pairs]
    counts = np.array([_bleu_counts(h, rs) for h, rs in pairs], dtype=np.float64)
    terms = np.column_stack([ciders.per_image, rouges, np.ones(len(hyps)), counts])
    values = {
        "CIDEr": ciders.score,
        **{name: float(score) for name, score in _bleu_named(_bleu_of_sums(counts.sum(axis=0))).items()},
        "ROUGE_L": float(np.mean(rouges)),  # pairwise sums, as the benchmark's: equal to the last digit
    }
    return Scored(values, terms, list(references), _of_sums)


def _of_sums(sums: Array) -> dict[str, Array]:
    return {
        "CIDEr": ratio(sums[..., 0], sums[..., 2]),
        **_bleu_named(_bleu_of_sums(sums[..., 3:])),
        "ROUGE_L": ratio(sums[..., 1], sums[..., 2]),
    }


def _bleu_named(scores: list[Array]) -> dict[str, Array]:
    return {f"Bleu_{n}": score for n, score in enumerate(scores, 1)}


# --- shared ---------------------------------------------------------------------------------------


def _words(tokens: Tokens) -> Tokens:
    """What BLEU and CIDEr count: the benchmark joins the tokens and cuts them anew at any space, so "22 3/4",
    one token with a no-break space in it, is two words. ROUGE-L takes the tokens as they are."""
    return " ".join(tokens).split()


def _grams(tokens: Tokens, n: int) -> Counter[Gram]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def _check(hyps: Sequence[object], refs: Sequence[Sequence[object]]) -> None:
    if not hyps or len(hyps) != len(refs) or not all(refs):
        raise ValueError(
            f"{len(hyps)} captions for {len(refs)} images: expected one each, at least one image, "
            "and at least one reference for every image"
        )
