"""Classification, retrieval and perplexity against twins that sort and count one by one."""

import math

import numpy as np
import pytest

from trainer.evaluation.classification import class_embeddings, score_classification, zero_shot_scores
from trainer.evaluation.intervals import intervals
from trainer.evaluation.perplexity import score_perplexity
from trainer.evaluation.retrieval import score_retrieval

rng = np.random.default_rng(0)


def in_order(scores) -> list[int]:
    """Indices, best first; of equal scores the lower index first."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))


# --- classification


def test_top_k_equals_sorting():
    scores = rng.integers(0, 6, (200, 12)).astype(float)  # with many ties
    labels = rng.integers(0, 12, 200).tolist()
    values = score_classification(scores, labels).values
    for k in (1, 5):
        hits = [label in in_order(row)[:k] for row, label in zip(scores, labels, strict=True)]
        assert values[f"top{k}"] == pytest.approx(np.mean(hits))


def test_of_equal_scores_the_lower_class_stands_first():
    assert score_classification(np.zeros((2, 3)), [0, 2]).values["top1"] == 0.5


def test_a_class_is_the_mean_direction_of_its_prompts():
    # A long embedding weighs no more than a short one: 45 degrees, not nearly 0.
    (one,) = class_embeddings([[[100.0, 0.0], [0.0, 1.0]]])
    assert one == pytest.approx([math.sqrt(0.5)] * 2)


def test_an_ensemble_scores_by_cosine():
    images, prompts = rng.normal(size=(5, 8)), [rng.normal(size=(3, 8)), rng.normal(size=(7, 8))]
    scores = zero_shot_scores(images, class_embeddings(prompts))
    for i, image in enumerate(images):
        for c, texts in enumerate(prompts):
            mean = sum(t / np.linalg.norm(t) for t in texts) / len(texts)
            cosine = image @ mean / np.linalg.norm(image) / np.linalg.norm(mean)
            assert scores[i, c] == pytest.approx(cosine)


# --- retrieval


def test_recall_equals_sorting_in_both_directions():
    images = 15
    owners = np.concatenate([np.arange(images), rng.integers(0, images, 30)]).tolist()
    scores = rng.integers(0, 8, (len(owners), images)).astype(float)
    scored = score_retrieval(scores, owners)
    for k in (1, 5, 10):
        by_text = [owner in in_order(row)[:k] for row, owner in zip(scores, owners, strict=True)]
        by_image = [any(owners[t] == i for t in in_order(scores[:, i])[:k]) for i in range(images)]
        assert scored.values[f"image_retrieval_recall@{k}"] == pytest.approx(np.mean(by_text))
        assert scored.values[f"text_retrieval_recall@{k}"] == pytest.approx(np.mean(by_image))


def test_perfect_retrieval_is_one_everywhere():
    owners = [0, 0, 1, 2, 2, 2]
    scores = np.eye(3)[owners]
    values = score_retrieval(scores, owners).values
    assert values.pop("texts") == 6
    assert set(values.values()) == {1.0}


def test_a_picture_without_a_text_is_refused():
    with pytest.raises(ValueError, match="needs a text"):
        score_retrieval(np.zeros((2, 3)), [0, 1])


# --- perplexity


def test_perplexity_weighs_tokens_not_documents():
    scored = score_perplexity([10.0, 2.0, 6.0], [5, 1, 6], ["web", "web", "pdf"], range(3))
    assert scored.values == {
        "perplexity": pytest.approx(math.exp(18 / 12)),
        "per_source": {"pdf": pytest.approx(math.e), "web": pytest.approx(math.exp(12 / 6))},
    }


def test_the_perplexity_of_drawn_documents_is_that_of_their_tokens():
    scored = score_perplexity([10.0, 2.0, 6.0], [5, 1, 6], ["web", "web", "pdf"], range(3))
    drawn = scored.of_sums(scored.terms[[1, 1, 2]].sum(axis=0))
    assert drawn["perplexity"] == pytest.approx(math.exp(10 / 8))
    assert drawn["per_source/web"] == pytest.approx(math.exp(2))


def test_resamples_without_a_source_say_nothing_of_it():
    # In a third of the resamples nothing of `pdf` is drawn; its only document has a perplexity of e.
    scored = score_perplexity([10.0, 2.0, 6.0], [5, 1, 6], ["web", "web", "pdf"], range(3))
    assert intervals(scored)["per_source/pdf"] == pytest.approx([math.e, math.e])
