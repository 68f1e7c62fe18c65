"""Caption metrics as the COCO caption benchmark counts them: BLEU, ROUGE-L, CIDEr; and exact match.

Papineni et al. 2002, "BLEU"; Lin 2004, "ROUGE"; Vedantam et al. 2015, "CIDEr: consensus-based image
description evaluation". What the benchmark calls CIDEr is close to the paper's CIDEr-D: clipped counts, a
Gaussian on the length difference, times ten, no stemming.

The metrics take tokens: `hyps[i]` is the caption of image i, `refs[i]` its references. `tokenize` makes them.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

Tokens = Sequence[str]
Gram = tuple[str, ...]

ORDERS = 4
"""Longest n-gram of BLEU and CIDEr."""
CIDER_SIGMA = 6.0
ROUGE_BETA = 1.2
# The benchmark's guards against 0 / 0: a caption without a match scores almost nothing instead of nothing.
BLEU_SMALL, BLEU_TINY = 1e-9, 1e-15


# --- tokens ---------------------------------------------------------------------------------------

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_TYPOGRAPHIC = str.maketrans("‘’“”–—", "''\"\"--")
_TOKEN = re.compile(
    r"""
      \d+\ \d+/\d+                          # 22 3/4 is one number
    | \d+:\d\d(?=[ap]m\b)                   # 5:54pm is a time and a word
    | (?:[a-z]\.){2,}(?![\w'])              # an acronym keeps its periods: t.v., at a line's end too
    | [a-hj-z]\.(?=\s+\w)                   # an initial its period, before a word: w. centre, not "person I."
    | (?:st|ave|blvd|rd|mr|mrs|ms|dr|jr|sr|mt|vs)\.(?!\w)
    | \w+(?:[-'/._&@]\w+|[:,]\d+)*          # a word: close-up, tub/shower, o'clock, 11:44, 1,000
    | [()\[\]{}/&$%\#*+=<>@~^|£€°]          # stands alone; all other punctuation is dropped
    """,
    re.VERBOSE,
)
_CLITIC = re.compile(r"(.+?)(n't|'(?:s|m|d|re|ve|ll))")
_TWO_WORDS = {w: (w[:3], w[3:]) for w in ("cannot", "gonna", "gotta", "wanna", "gimme", "lemme")}


def tokenize(caption: str) -> list[str]:
    """Tokens close to those of the benchmark's own tokenizer (Penn Treebank rules, punctuation dropped).

    Lower case; clitics split off (it 's, do n't); brackets become words; the periods of abbreviations stay.
    """
    tokens: list[str] = []
    for token in _TOKEN.findall(caption.lower().translate(_TYPOGRAPHIC)):
        if token in _TWO_WORDS:
            tokens += _TWO_WORDS[token]
        elif clitic := _CLITIC.fullmatch(token):
            tokens += clitic.groups()
        else:
            # The Treebank keeps a mixed number in one token by a no-break space.
            tokens.append(_BRACKETS.get(token, token.replace(" ", "\u00a0")))
    return tokens


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
    matched, guessed = [0] * ORDERS, [0] * ORDERS
    length = closest = 0
    for hyp, references in zip(hyps, refs, strict=True):
        length += len(hyp)
        # Of two references equally close, the shorter one.
        closest += min((abs(len(r) - len(hyp)), len(r)) for r in references)[1]
        for n in range(1, ORDERS + 1):
            most: Counter[Gram] = Counter()
            for r in references:
                most |= _grams(r, n)
            matched[n - 1] += (_grams(hyp, n) & most).total()
            guessed[n - 1] += max(0, len(hyp) - n + 1)

    ratio = (length + BLEU_TINY) / (closest + BLEU_SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(ORDERS):
        product *= (matched[n] + BLEU_TINY) / (guessed[n] + BLEU_SMALL)
        scores.append(brevity * product ** (1 / (n + 1)))
    return scores


# --- ROUGE-L --------------------------------------------------------------------------------------


def rouge_l(hyps: Sequence[Tokens], refs: Sequence[Sequence[Tokens]]) -> float:
    """The mean over images of the F-score of the longest common subsequence.

    The best precision and the best recall may come from two references, as in the benchmark.
    """
    _check(hyps, refs)
    total = 0.0
    for hyp, references in zip(hyps, refs, strict=True):
        common = [_longest_common(hyp, r) for r in references]
        precision = max(c / max(1, len(hyp)) for c in common)
        recall = max(c / max(1, len(r)) for c, r in zip(common, references, strict=True))
        if precision and recall:
            beta2 = ROUGE_BETA**2
            total += (1 + beta2) * precision * recall / (recall + beta2 * precision)
    return total / len(hyps)


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


# --- shared ---------------------------------------------------------------------------------------


def _grams(tokens: Tokens, n: int) -> Counter[Gram]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def _check(hyps: Sequence[object], refs: Sequence[Sequence[object]]) -> None:
    if not hyps or len(hyps) != len(refs) or not all(refs):
        raise ValueError(
            f"{len(hyps)} captions for {len(refs)} images: expected one each, at least one image, "
            "and at least one reference for every image"
        )
