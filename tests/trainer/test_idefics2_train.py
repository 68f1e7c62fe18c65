"""The whole road of a published model: import it, train it, export it, generate with plain transformers."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from data_pipeline.stream.datasets import Datasets
from idefics2_like import our_answer, publish, their_answers
from trainer.export.hf import load_exported
from trainer.trained import export_trained, open_trained

STAGES = {
    "defaults": {
        "global_batch": 4,
        "micro_batch": 2,
        "sequence_length": 256,
        "mask": "causal",
        "lr": 1e-3,
    },
    "stages": [
        {
            "name": "tune",
            "init_from": "backbones",
            "train": {"language": 1.0, "new_tokens": 1.0},
            "mixture": {"scenes_qa": 1},
            "loss_on": "answers",
            "steps": 2,
        }
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_an_imported_model_trains_and_goes_back_to_transformers(prepared, fovea, tmp_path, tied):
    run = tmp_path / "run"
    shutil.copytree(prepared / "data", run / "data")
    published = publish(tmp_path / "published", "llama" if tied else "mistral", tie_word_embeddings=tied)
    done = fovea("import", published, run / "backbones")
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout
    page = yaml.safe_load((run / "backbones" / "model.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({"name": "tuned", **page, **STAGES}))
    done = fovea("train", run / "recipe.yaml", "--stage", "tune", "--run", run, "--nproc", 1 + tied)
    assert done.returncode == 0, done.stderr
    done = fovea(
        "export", run / "tune", tmp_path / "idefics2", "--to", "idefics2", "--json", tmp_path / "json"
    )
    assert done.returncode == 0, done.stderr
    about = json.loads((tmp_path / "json").read_text())
    assert (about["to"], about["max_logit_diff"] < 1e-3) == ("idefics2", True)

    before = {k: v for f in published.glob("*.safetensors") for k, v in load_file(f).items()}
    after = load_file(tmp_path / "idefics2" / "model.safetensors")
    changed = {k for k in before if not before[k].bfloat16().float().equal(after[k])}  # trained in bf16
    frozen = {k for k in before if k.startswith(("model.vision_model", "model.connector"))}
    # What is frozen is what was imported: the connector's weights too are those of the directory.
    assert changed == before.keys() - frozen
    if not tied:
        assert (before["lm_head.weight"] != after["lm_head.weight"])[-1].any()  # <end_of_utterance>

    opened = open_trained(run / "tune")
    source = Datasets.read([run / "data"]).source("scenes_qa", "heldout")
    samples = [source[i] for i in range(3)]
    ours = [our_answer(opened.model, opened.tokenizer, s, 12) for s in samples]
    assert their_answers(tmp_path / "idefics2", samples, 12) == ours
    assert export_trained(opened, tmp_path / "fovea")["max_logit_diff"] == 0.0
    reopened = load_exported(tmp_path / "fovea")
    assert [our_answer(reopened, opened.tokenizer, s, 12) for s in samples] == ours
    with torch.no_grad():
        assert all(a.equal(b) for a, b in zip(reopened.parameters(), opened.model.parameters(), strict=True))
