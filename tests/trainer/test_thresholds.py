"""Gates: thresholds on what an evaluation of this very checkpoint measured, and nothing else."""

import json

import pytest

from data_pipeline.errors import ConfigError
from trainer.config import dump_recipe, load_recipe
from trainer.evaluation.thresholds import Threshold, scores_of, unmet


def write(directory, name, page):
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(json.dumps(page))


def test_scores_are_named_by_file_and_key_and_are_of_that_checkpoint_alone(tmp_path):
    heldout = {
        "stage": "align",
        "step": 4,
        "checkpoint": "abc",
        "vqa": {"accuracy": 0.5, "n": 8},
        "loss": None,
    }
    write(tmp_path, "results.json", heldout)
    write(tmp_path, "pope.json", {"checkpoint": {"digest": "abc"}, "scores": {"accuracy": 0.25}})
    write(tmp_path, "vqav2.json", {"checkpoint": {"digest": "another"}, "scores": {"overall": 0.9}})
    write(tmp_path, "ai2d.json", {"checkpoint": {"digest": "abc"}, "scores": None})
    (tmp_path / "broken.json").write_text("{")
    assert scores_of(tmp_path, "abc") == {"step": 4, "vqa.accuracy": 0.5, "vqa.n": 8, "pope.accuracy": 0.25}
    assert scores_of(tmp_path, "another") == {"vqav2.overall": 0.9}


def test_a_threshold_that_is_met_to_the_number_holds_and_one_without_a_metric_does_not():
    gate = {"vqa.accuracy": Threshold(min=0.5), "loss.right_image": Threshold(max=3)}
    assert not list(unmet(gate, {"vqa.accuracy": 0.5, "loss.right_image": 3.0}))
    assert list(unmet(gate, {"vqa.accuracy": 0.49, "loss.right_image": 3.01})) == [
        "vqa.accuracy: 0.49, needs at least 0.5",
        "loss.right_image: 3.01, needs at most 3",
    ]
    below, missing = unmet(gate, {"vqa.acuracy": 1.0, "loss.right_image": float("nan")})
    assert below == "vqa.accuracy: not measured, needs at least 0.5; did you mean 'vqa.acuracy'?"
    assert missing == "loss.right_image: nan, needs at most 3"


def test_a_number_on_the_page_is_at_least_and_survives_the_page(tmp_path):
    words = ["stages.align.gate={vqa.accuracy: 0.5, loss.right_image: {max: 3}}"]
    recipe = load_recipe("tiny", words)
    gate = recipe.stage("align").gate
    assert gate == {"vqa.accuracy": Threshold(min=0.5), "loss.right_image": Threshold(max=3)}
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize("threshold", ["{}", ".nan", "{least: 1}", "high"])
def test_a_threshold_that_says_nothing_is_refused(threshold):
    with pytest.raises(ConfigError, match="gate"):
        load_recipe("tiny", [f"stages.align.gate={{vqa.accuracy: {threshold}}}"])


def test_a_stage_is_found_by_its_number_too():
    recipe = load_recipe("tiny")
    assert recipe.stage("3") == recipe.stage("instruct")
    for name in ("0", "5", "third"):
        with pytest.raises(ConfigError, match="Stages: align, pretrain, instruct, adapt"):
            recipe.stage(name)
