"""The held-out suite measures sight: own pictures and another's, never a training sample."""

import json

import pytest

from data_pipeline.stream.chat import prompt
from data_pipeline.stream.datasets import Datasets
from trainer.evaluation.suite import _draw, _is_question, _with_others
from trainer.trained import evaluate_trained, open_trained


@pytest.fixture(scope="module")
def opened(trained):
    return open_trained(trained / "instruct")


@pytest.fixture(scope="module")
def results(opened):
    return evaluate_trained(opened)


def test_every_score_stands_beside_its_blind_one(results):
    assert results["captions"].keys() >= {"n", "CIDEr", "CIDEr_blind", "exact", "exact_blind"}
    assert results["vqa"].keys() >= {"n", "accuracy", "accuracy_blind", "per_question_type"}
    assert results["loss"].keys() >= {"n", "right_image", "wrong_image"}
    assert results["captions"]["n"] > 0
    assert results["vqa"]["n"] > 0


def test_results_and_examples_are_written_beside_the_checkpoint_s_stage(results, opened):
    directory = opened.run_dir / "instruct" / "eval" / "step_000004"
    assert json.loads((directory / "results.json").read_text()) == results
    examples = json.loads((directory / "examples.json").read_text())
    assert {e["task"] for e in examples} == {"caption", "vqa"}
    assert all(e["image"].startswith("data:image/") for e in examples)


def test_evaluating_twice_gives_the_same_results(results, opened):
    assert evaluate_trained(opened) == results


def test_the_loss_equals_a_sample_by_sample_sum(results, opened):
    """Batches of padded rows against the same model on single samples: the naive twin."""
    again = open_trained(opened.checkpoint.path)
    one = again.recipe.model_copy(
        update={"evaluation": again.recipe.evaluation.model_copy(update={"batch": 1})}
    )
    object.__setattr__(again, "recipe", one)
    alone = evaluate_trained(again)
    assert alone["loss"]["right_image"] == pytest.approx(results["loss"]["right_image"], abs=1e-5)
    assert alone["captions"] == results["captions"]
    assert alone["vqa"] == results["vqa"]


def test_blind_pictures_are_of_other_samples_and_no_sample_was_trained_on(opened):
    datasets = Datasets.read([opened.run_dir / "data"])
    seen = set()
    for name in datasets.names("train"):
        source = datasets.source(name, "train")
        for i in range(len(source)):
            seen |= {m.media_id for m in source[i].media}
    sources = {n: datasets.source(n, "heldout") for n in datasets.names("heldout")}
    items = _with_others(
        _draw(
            sources,
            20,
            _is_question,
            lambda s: [prompt(s, opened.tokenizer, opened.recipe.model.image_tokens)],
            opened.recipe.model.image,
            0,
        )
    )
    assert items
    for item in items:
        assert not {m.media_id for m in item.sample.media} & seen
        assert not (item.other[0].patches == item.pictures[0].patches).all()
