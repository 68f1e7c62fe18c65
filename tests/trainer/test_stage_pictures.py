"""Pictures of another size in one stage: in its rows, in its checkpoints, and in what reads those."""

import json

import pytest

from data_pipeline.errors import ConfigError
from data_pipeline.stream.tokens import Tokenizer
from trainer.config import load_recipe
from trainer.engine.checkpoint import newest
from trainer.explain import explain
from trainer.run import changes, fingerprints_of
from trainer.stage_stream import open_datasets, rendering_of
from trainer.trained import open_trained

SMALL = "stages.align.longest_edge=16"


@pytest.mark.slow
def test_a_stage_trains_on_pictures_of_its_size_and_the_next_one_on_the_models(run_dir, fovea):
    for stage in ("align", "instruct"):
        words = ("--stage", stage, "--run", run_dir, SMALL, "stages.align.steps=2", "stages.instruct.steps=2")
        done = fovea("train", run_dir / "recipe.yaml", *words)
        assert done.returncode == 0, done.stderr
    recipe = load_recipe(run_dir / "recipe.resolved.yaml")
    assert recipe.model.image.longest_edge == 32
    for stage, side in (("align", 2), ("instruct", 4)):
        entries = explain(recipe, recipe.stage(stage), run_dir, 1, 1).entries
        assert {e.patches for e in entries if e.images} == {side**2}
        trained = open_trained(run_dir / stage)
        assert trained.model.connector.grid == side
        assert trained.recipe.model.image_tokens == (side // 2) ** 2
    done = fovea("eval", run_dir / "align")
    assert done.returncode == 0, done.stderr
    scores = json.loads((run_dir / "align" / "eval" / "step_000002" / "results.json").read_text())
    assert scores["step"] == 2


def test_a_stage_without_a_size_has_the_models(prepared):
    recipe = load_recipe(prepared / "recipe.yaml", [SMALL])
    assert recipe.model_of(recipe.stage("instruct")) == recipe.model
    tokenizer = Tokenizer.load(prepared / "backbones" / "tokenizer")
    keys = [rendering_of(recipe, stage, tokenizer).key for stage in recipe.stages]
    assert keys[0] != keys[1]  # sizes that were measured for one do not serve the other


def test_the_shorter_side_is_the_stages_too(prepared):
    recipe = load_recipe(prepared / "recipe.yaml", [SMALL, "stages.align.shortest_edge=16"])
    image = recipe.model_of(recipe.stage("align")).image
    assert image.size(64, 8) == (16, 16)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        (["stages.align.longest_edge=20"], "must be a multiple of patch"),
        (["stages.align.longest_edge=24"], "factor"),
        (["stages.align.shortest_edge=64"], "larger than longest_edge"),
    ],
)
def test_a_size_that_the_model_cannot_take_is_refused_with_the_stages_name(prepared, keys, why):
    with pytest.raises(ConfigError, match=why) as caught:
        load_recipe(prepared / "recipe.yaml", keys)
    assert "stage 'align'" in str(caught.value)


def test_a_checkpoint_of_another_size_is_of_another_run(trained):
    recipe = load_recipe(trained / "recipe.yaml", [SMALL])
    tokenizer = Tokenizer.load(trained / "backbones" / "tokenizer")
    ours = fingerprints_of(recipe, recipe.stage("align"), open_datasets(recipe, trained), tokenizer)
    found, _ = newest(trained / "align")
    assert "model.image: " in "".join(changes(found.fingerprints, ours))


def test_idefics2_begins_with_small_pictures():
    recipe = load_recipe("idefics2-8b")
    assert [recipe.model_of(stage).image.largest_grid for stage in recipe.stages] == [27, 70, 70, 70]
