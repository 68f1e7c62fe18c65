"""An export stands alone and is the checkpoint it came from."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_pipeline.errors import DataError
from trainer.export.consolidate import refuse_empty
from trainer.export.hf import load_exported
from trainer.trained import _probe, export_trained, open_trained


@pytest.fixture(scope="module")
def opened(trained):
    return open_trained(trained / "instruct")


def test_a_reopened_export_has_identical_logits(opened, tmp_path):
    about = export_trained(opened, tmp_path / "exported")
    assert about["max_logit_diff"] == 0.0
    assert about["parameters"] == sum(t.numel() for t in opened.weights.values())


def test_the_weights_on_disk_are_the_checkpoint_s(opened, tmp_path):
    export_trained(opened, tmp_path / "exported")
    on_disk = load_file(tmp_path / "exported" / "model.safetensors")
    assert on_disk.keys() == opened.weights.keys()
    assert all(torch.equal(on_disk[k], opened.weights[k]) for k in on_disk)


def test_one_changed_weight_changes_the_logits_that_are_compared(opened, tmp_path):
    """The comparison could fail: it is not satisfied by any model of this shape."""
    export_trained(opened, tmp_path / "exported")
    file = tmp_path / "exported" / "model.safetensors"
    weights = load_file(file)
    name = next(k for k in weights if k.startswith("connector.") and weights[k].ndim == 2)
    weights[name] = weights[name] + 0.5
    save_file(weights, file)
    probe = _probe(opened.recipe, opened.tokenizer)
    with torch.no_grad():
        assert not torch.equal(load_exported(tmp_path / "exported").logits(probe), opened.model.logits(probe))


def test_empty_tensors_are_refused_by_name():
    with pytest.raises(DataError, match="lm_head"):
        refuse_empty({"a": torch.ones(2), "lm_head": torch.empty(0)}, "here")


def test_an_export_with_an_empty_tensor_is_not_loaded(opened, tmp_path):
    export_trained(opened, tmp_path / "exported")
    file = tmp_path / "exported" / "model.safetensors"
    weights = load_file(file)
    weights["new_tokens.weight"] = torch.empty(0)
    save_file(weights, file)
    with pytest.raises(DataError, match=r"new_tokens\.weight"):
        load_exported(tmp_path / "exported")


def test_an_export_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(DataError, match="llama"):
        load_exported(tmp_path)


def test_a_directory_with_other_files_is_not_overwritten(opened, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        export_trained(opened, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_nothing_in_an_export_is_a_pickle(opened, tmp_path):
    export_trained(opened, tmp_path / "exported")
    suffixes = {p.suffix for p in (tmp_path / "exported").rglob("*") if p.is_file()}
    assert suffixes <= {".json", ".safetensors", ".jinja"}
