"""Caption metrics against naive twins, hand counts, and the scores of the reference implementation."""

import itertools
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from trainer.evaluation.captioning import bleu, cider, exact_match, rouge_l, score_captions
from trainer.evaluation.ptb import tokenize

REFERENCE = Path(__file__).parents[3] / "shared" / "evalref" / "captioning"
needs_reference = pytest.mark.skipif(
    not REFERENCE.exists(), reason="the reference scores (../shared/evalref) are not on this machine"
)
CORPORA = {
    "coco_fakecap126": "tokenized.json",
    "nlgeval_readme": "input.json",
    "clipscore_good": "input.json",
    "clipscore_bad": "input.json",
}


def words(text: str) -> list[str]:
    return text.split()


# --- exact match


def test_exact_match_forgives_only_the_space_around():
    hyps = [" a cat", "A dog", "a cow"]
    assert exact_match(hyps, [["a cat\n"], ["a dog"], ["a hen", "a cow"]]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("metric", [bleu, rouge_l, cider, exact_match])
@pytest.mark.parametrize(("hyps", "refs"), [([], []), ([["a"]], []), ([["a"]], [[]])])
def test_a_corpus_without_captions_or_references_is_refused(metric, hyps, refs):
    with pytest.raises(ValueError, match="at least one reference"):
        metric(hyps, refs)


# --- BLEU


def test_bleu_by_hand():
    # "the" is clipped to 2 of 7; no bigram matches. Of lengths 6 and 9 the closest to 7 is 6: no penalty.
    hyp = words("the the the the the the the")
    refs = [words("the cat is on the mat"), words("there is a cat on that mat of mine")]
    b1, b2, *_ = bleu([hyp], [refs])
    assert b1 == pytest.approx(2 / 7, abs=1e-6)
    assert b2 < 1e-6


def test_bleu_punishes_a_caption_shorter_than_the_closest_reference():
    assert bleu([words("a b")], [[words("a b c d")]])[0] == pytest.approx(math.exp(1 - 4 / 2), abs=1e-6)
    # 1 and 3 are equally close to 2: the shorter counts, so there is no penalty.
    assert bleu([words("a b")], [[words("a b c"), words("a")]])[0] == pytest.approx(1, abs=1e-6)


def test_bleu_sums_over_the_corpus_before_it_divides():
    hyps = [words("a b c"), words("x")]
    refs = [[words("a b c")], [words("y")]]
    assert bleu(hyps, refs)[0] == pytest.approx(3 / 4, abs=1e-6)


def test_a_perfect_caption_has_bleu_one():
    assert bleu([words("a b c d e")], [[words("a b c d e")]]) == pytest.approx([1] * 4, abs=1e-6)


# --- ROUGE-L


def brute_force_common(a, b):
    """Length of the longest common subsequence: try every subsequence of `a`, longest first."""
    for size in range(len(a), 0, -1):
        for kept in itertools.combinations(a, size):
            rest = iter(b)
            if all(token in rest for token in kept):
                return size
    return 0


def test_rouge_equals_its_brute_force_twin():
    rng = random.Random(0)
    for _ in range(60):
        hyp = rng.choices("abc", k=rng.randint(1, 7))
        refs = [rng.choices("abc", k=rng.randint(1, 7)) for _ in range(3)]
        common = [brute_force_common(hyp, r) for r in refs]
        p = max(c / len(hyp) for c in common)
        r = max(c / len(ref) for c, ref in zip(common, refs, strict=True))
        expected = (1 + 1.44) * p * r / (r + 1.44 * p) if p else 0
        assert rouge_l([hyp], [refs]) == pytest.approx(expected)


# --- CIDEr


def naive_cider(hyps, refs):
    """CIDEr with dense vectors over all n-grams of the corpus."""

    def grams(tokens, n):
        return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]

    scores = np.zeros(len(hyps))
    for n in range(1, 5):
        vocabulary = sorted(
            {g for h, rs in zip(hyps, refs, strict=True) for t in [h, *rs] for g in grams(t, n)}
        )
        df = np.array([sum(any(g in grams(r, n) for r in rs) for rs in refs) for g in vocabulary])
        idf = np.log(len(refs)) - np.log(np.maximum(1, df))

        def vector(tokens, n=n, vocabulary=vocabulary, idf=idf):
            return np.array([grams(tokens, n).count(g) for g in vocabulary]) * idf

        for i, (h, rs) in enumerate(zip(hyps, refs, strict=True)):
            for r in rs:
                a, b = vector(h), vector(r)
                norm = np.linalg.norm(a) * np.linalg.norm(b)
                if norm:
                    damp = math.exp(-((len(h) - len(r)) ** 2) / 72)
                    scores[i] += np.minimum(a, b) @ b / norm * damp / len(rs) * 10 / 4
    return scores


def test_cider_equals_its_dense_twin():
    rng = random.Random(1)

    def sentence():
        return rng.choices("abcdefg", k=rng.randint(1, 9))

    hyps = [sentence() for _ in range(12)]
    refs = [[sentence() for _ in range(rng.randint(1, 4))] for _ in hyps]
    ours, naive = cider(hyps, refs), naive_cider(hyps, refs)
    assert ours.per_image == pytest.approx(naive, abs=1e-9)
    assert ours.score == pytest.approx(naive.mean(), abs=1e-9)


def test_cider_of_perfect_captions_is_ten_and_of_strangers_is_zero():
    refs = [[words("a red cube on the left")], [words("two blue balls in one row")]]
    assert cider([r[0] for r in refs], refs).score == pytest.approx(10)
    assert cider([words("nothing"), words("here")], refs).score == 0


def test_cider_of_one_image_is_zero():
    # Every n-gram is in every document, so none carries weight.
    assert cider([words("a b c d")], [[words("a b c d")]]).score == 0


def test_an_empty_caption_scores_without_a_crash():
    hyps, refs = [[], words("a b")], [[words("a b")], [words("a c")]]
    assert cider(hyps, refs).per_image[0] == 0
    assert rouge_l(hyps[:1], refs[:1]) == 0
    assert bleu(hyps[:1], refs[:1])[0] == pytest.approx(0, abs=1e-5)


# --- the reference implementation


@needs_reference
@pytest.mark.parametrize("corpus", CORPORA)
def test_scores_equal_the_reference_implementation(corpus):
    texts = json.loads((REFERENCE / corpus / CORPORA[corpus]).read_text())
    expected = json.loads((REFERENCE / corpus / "expected.json").read_text())
    already_tokens = corpus in ("coco_fakecap126", "nlgeval_readme")
    split = words_of_tokenised if already_tokens else tokenize
    hyps = [split(t["hyp"]) for t in texts.values()]
    refs = [[split(r) for r in t["refs"]] for t in texts.values()]

    ours, scores, per_image = cider(hyps, refs), expected["scores"], expected["per_image"]
    assert ours.score == pytest.approx(scores["CIDEr"], abs=1e-9)
    assert ours.per_image == pytest.approx([i["CIDEr"] for i in per_image], abs=1e-9)
    assert rouge_l(hyps, refs) == pytest.approx(scores["ROUGE_L"], abs=1e-9)
    assert bleu(hyps, refs) == pytest.approx([scores[f"Bleu_{n}"] for n in range(1, 5)], abs=1e-9)
    for hyp, references, image in zip(hyps, refs, per_image, strict=True):
        assert rouge_l([hyp], [references]) == pytest.approx(image["ROUGE_L"], abs=1e-9)
        assert bleu([hyp], [references]) == pytest.approx([image[f"Bleu_{n}"] for n in range(1, 5)], abs=1e-9)


def words_of_tokenised(text: str) -> list[str]:
    """A plain split would break the no-break space inside mixed numbers."""
    return text.split(" ")


@needs_reference
def test_raw_captions_score_as_the_reference_scores_its_own_tokens():
    raw = json.loads((REFERENCE / "coco_fakecap126" / "input.json").read_text())
    expected = json.loads((REFERENCE / "coco_fakecap126" / "expected.json").read_text())["scores"]
    ours = score_captions({i: t["hyp"] for i, t in raw.items()}, {i: t["refs"] for i, t in raw.items()})
    for name, value in ours.values.items():
        assert value == pytest.approx(expected[name], abs=1e-9), name


def made_up(images: int, seed: int = 0):
    """Captions and five references each of words as rare as Zipf says."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("aeinost", k=rng.randint(1, 6))) for _ in range(300)]
    weights = [1 / (i + 1) for i in range(len(words))]

    def one() -> str:
        return " ".join(rng.choices(words, weights, k=rng.randint(0, 12)))

    return {i: one() for i in range(images)}, {i: [one() for _ in range(5)] for i in range(images)}


def test_scores_equal_pycocoevalcaps_python():
    bleus = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4)
    ciders = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    rouges = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    captions, references = made_up(60)
    captions |= {1: "", 2: "at 22\u00a03/4 street", 3: "at 22"}
    references[1] = ["a", ""]  # two empty captions have an empty word in common
    references[2] = ["22\u00a03/4 street", "22 street"]  # one token, which BLEU and CIDEr take for two words
    references[3] = ["at 22\u00a03/4", "22\u00a0 a"]
    hyps = [c.split(" ") if c else [] for c in captions.values()]
    refs = [[r.split(" ") if r else [] for r in rs] for rs in references.values()]
    theirs = {i: [c] for i, c in captions.items()}
    assert bleu(hyps, refs) == pytest.approx(bleus.compute_score(references, theirs, verbose=0)[0], abs=1e-12)
    score, per_image = ciders.compute_score(references, theirs)
    assert cider(hyps, refs).score == pytest.approx(score, abs=1e-12)
    assert cider(hyps, refs).per_image == pytest.approx(per_image, abs=1e-12)
    assert rouge_l(hyps, refs) == pytest.approx(rouges.compute_score(references, theirs)[0], abs=1e-12)


# --- what the intervals are made of


def test_the_sums_of_drawn_images_give_the_scores_of_those_images():
    captions, references = made_up(20, seed=1)
    scored = score_captions(captions, references)
    drawn = [3, 3, 7, 0, 19, 7]
    values = scored.of_sums(scored.terms[drawn].sum(axis=0))
    hyps, refs = [tokenize(captions[i]) for i in drawn], [[tokenize(r) for r in references[i]] for i in drawn]
    assert [values[f"Bleu_{n}"] for n in range(1, 5)] == pytest.approx(bleu(hyps, refs))
    assert values["ROUGE_L"] == pytest.approx(rouge_l(hyps, refs))
    every = cider(
        [tokenize(c) for c in captions.values()], [[tokenize(r) for r in rs] for rs in references.values()]
    )
    assert values["CIDEr"] == pytest.approx(np.mean([every.per_image[i] for i in drawn]))


def test_the_order_of_images_changes_no_score():
    captions, references = made_up(30, seed=2)
    captions[0] = "this is plan b."  # what the tokenizer makes of the last word depends on the next line
    backwards = {i: references[i] for i in reversed(references)}
    ours, theirs = score_captions(captions, references).values, score_captions(captions, backwards).values
    assert ours == pytest.approx(theirs, abs=1e-12)
