"""Every page that ships loads, and a wrong page says all that is wrong with it, where, and what was meant."""

from pathlib import Path

import pytest
import yaml

from data_pipeline.errors import ConfigError
from trainer.config import RECIPES, dump_recipe, load_recipe
from trainer.engine.ds_config import read_ds_config

SHIPPED = sorted(RECIPES.glob("*.yaml"))


@pytest.fixture
def page(tmp_path: Path):
    """Write a changed copy of tiny.yaml; gives its path."""

    def write(old: str, new: str, *more: tuple[str, str]) -> Path:
        text = (RECIPES / "tiny.yaml").read_text()
        for before, after in ((old, new), *more):
            assert before in text
            text = text.replace(before, after, 1)
        file = tmp_path / "page.yaml"
        file.write_text(text)
        return file

    return write


def line_of(file: Path, text: str) -> int:
    return next(i for i, line in enumerate(file.read_text().splitlines(), 1) if text in line)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_recipe_loads_and_its_dump_loads_to_the_same_value(file, tmp_path):
    recipe = load_recipe(file)
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe
    for stage in recipe.stages:
        read_ds_config(stage.ds_config)


def test_a_recipe_is_found_by_its_name():
    assert load_recipe("tiny").name == "tiny"


def test_a_source_of_a_mixture_may_say_more_than_its_weight(page, tmp_path):
    file = page(
        "{scenes_alt: 1, scenes_dense: 3}", "{scenes_alt: 1, scenes_dense: {weight: 3, max_epochs: 2}}"
    )
    mixture = load_recipe(file).stage("align").mixture
    assert {n: (s.weight, s.max_epochs) for n, s in mixture.items()} == {
        "scenes_alt": (1.0, None),
        "scenes_dense": (3.0, 2.0),
    }
    assert "scenes_alt: 1.0" in dump_recipe(load_recipe(file))  # as short as it was written


def test_a_wrong_weight_is_one_error(page):
    file = page("{scenes_alt: 1, scenes_dense: 3}", "{scenes_alt: -1, scenes_dense: {weight: 3, epochs: 2}}")
    with pytest.raises(ConfigError, match="2 errors") as e:
        load_recipe(file)
    assert "mixture.scenes_alt.weight: Input should be greater than 0" in str(e.value)
    assert "mixture.scenes_dense.epochs: unknown key 'epochs'; did you mean 'max_epochs'" in str(e.value)


def test_a_row_too_short_for_a_picture_is_an_error_of_the_recipe(page):
    file = page("sequence_length: 192", "sequence_length: 19")
    with pytest.raises(ConfigError, match=r"a picture takes 20 tokens with all beside it.*is 19: raise it"):
        load_recipe(file)


def test_an_unknown_recipe_name_gets_the_nearest_one():
    with pytest.raises(ConfigError, match="did you mean 'tiny'"):
        load_recipe("tyny")


def test_a_misspelt_key_names_file_line_and_nearest_key(page):
    file = page("    loss_on: answers", "    los_on: answers")
    with pytest.raises(ConfigError) as e:
        load_recipe(file)
    assert f"{file}:{line_of(file, 'los_on')}" in str(e.value)
    assert "did you mean 'loss_on'" in str(e.value)


def test_two_errors_are_reported_at_once(page):
    file = page("seed: 0", "sede: 0", ("    lr: 2.0e-3", "    lr: fast"))
    with pytest.raises(ConfigError) as e:
        load_recipe(file)
    message = str(e.value)
    assert message.startswith("2 errors")
    assert f":{line_of(file, 'sede')}:" in message
    assert f":{line_of(file, 'lr: fast')}:" in message


def test_a_wrong_default_is_reported_once_at_its_own_line(page):
    file = page("  weight_decay: 0.01", "  weight_decai: 0.01")
    with pytest.raises(ConfigError) as e:
        load_recipe(file)
    assert str(e.value).count("weight_decai'") == 1
    assert f":{line_of(file, 'weight_decai')}:" in str(e.value)


def test_an_unknown_module_gets_the_nearest_name(page):
    file = page("train: {connector: 1.0,", "train: {conector: 1.0,")
    with pytest.raises(ConfigError, match="no module 'conector'; did you mean 'connector'"):
        load_recipe(file)


def test_overrides_reach_stages_by_name_and_obey_the_same_rules():
    assert load_recipe("tiny", ["stages.adapt.lr=0.5"]).stage("adapt").lr == 0.5
    with pytest.raises(ConfigError, match="did you mean 'adapt'"):
        load_recipe("tiny", ["stages.adept.lr=0.5"])
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        load_recipe("tiny", ["stages.adapt.stepz=5"])


def test_rank_counts_that_leave_rows_over_are_refused_with_the_allowed_ones():
    stage = load_recipe("tiny").stage("align")
    with pytest.raises(ConfigError, match=r"3 ranks.*\n.*1, 2"):
        stage.accumulation(3)
    assert stage.accumulation(1) * stage.micro_batch == stage.global_batch


def test_keys_that_the_recipe_owns_are_refused_in_ds_config(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"train_batch_size": 8, "gradient_clipping": 1.0}')
    with pytest.raises(ConfigError) as e:
        read_ds_config(str(file))
    assert "train_batch_size" in str(e.value)
    assert "gradient_clipping" in str(e.value)


def test_no_recipe_says_what_only_ds_config_may_say():
    for file in SHIPPED:
        assert not {"zero_optimization", "bf16", "fp16"} & set(yaml.safe_load(file.read_text())["defaults"])
