"""A checkpoint from before a key of the model's page existed resumes; one of another model does not."""

import copy
from pathlib import Path

import pytest

from data_pipeline.errors import ConfigError
from data_pipeline.image_spec import Perceiver
from trainer.engine.checkpoint import Checkpoint
from trainer.engine.state import TrainState
from trainer.models.config import Model
from trainer.run import _refuse_other_run

OURS = {
    "seed": 0,
    "model": Model(connector=Perceiver(latents=4)).model_dump(mode="json"),
    "stage": {"lr": 1.0},
    "data": "d",
    "tokenizer": "t",
}


def resume(fingerprints):
    found = Checkpoint(path=Path("c"), step=1, world_size=1, state=TrainState(), fingerprints=fingerprints)
    _refuse_other_run(found, OURS, accept_changed_data=False)


def test_a_key_that_the_checkpoint_does_not_know_has_its_default():
    before = copy.deepcopy(OURS)
    for key in ("qk_norm", "projection_width", "eps"):
        del before["model"]["connector"][key]
    resume(before)


def test_another_value_of_that_key_is_another_run():
    other = copy.deepcopy(OURS)
    other["model"]["connector"]["qk_norm"] = False
    with pytest.raises(ConfigError, match=r"model\.connector"):
        resume(other)


@pytest.mark.parametrize("part", ["seed", "data", "tokenizer"])
def test_another_seed_dataset_or_tokenizer_is_another_run(part):
    with pytest.raises(ConfigError, match=f"{part}: 'other' in the checkpoint"):
        resume({**OURS, part: "other"})
