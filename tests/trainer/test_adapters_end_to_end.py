"""Stages that train by adapters, by the commands that a user gives; then evaluated and exported, merged."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import Idefics2ForConditionalGeneration

from data_pipeline.errors import DataError
from idefics2_like import publish
from trainer.export.consolidate import consolidate
from trainer.export.peft_layout import compare_adapters
from trainer.launch import meeting_port
from trainer.models.adapters import is_adapter
from trainer.trained import _probe, export_trained, open_trained

ADAPTERS = {
    "align": "{connector: 1, new_tokens: 1, vision: {dora: {rank: 2}}, language: {lora: {rank: 3}, lr: 0.5}}",
    "instruct": "{connector: {lora: {rank: 2}}, vision: {dora: {rank: 2}}, language: 0.5}",
}
SHORT = [f"stages.{stage}.{key}" for stage in ADAPTERS for key in ("steps=2", "checkpoint_every=2")]


@pytest.fixture
def words(run_dir):
    train = [f"stages.{stage}.train={value}" for stage, value in ADAPTERS.items()]
    return ["train", run_dir / "recipe.yaml", "--run", run_dir, *SHORT, *train, "--stage"]


def test_adapters_train_are_merged_or_go_on_in_the_next_stage_and_export_without_a_difference(
    words, run_dir, fovea, tmp_path
):
    said = {}
    for stage in ADAPTERS:
        done = fovea(*words, stage)
        assert done.returncode == 0, done.stderr
        said[stage] = done.stdout
    assert "lora (rank 3, alpha 16)" in said["align"]
    table = json.loads((run_dir / "instruct" / "parameters.json").read_text())["modules"]
    assert [m["how"] for m in table] == [
        "dora (rank 2, alpha 16)",
        "lora (rank 2, alpha 16)",
        "full",
        "frozen",
    ]
    assert table[-1]["trainable"] == 0 < table[0]["trainable"] < table[0]["parameters"]

    align, instruct = (open_trained(run_dir / stage) for stage in ADAPTERS)
    shards = consolidate(instruct.checkpoint.path)
    assert {n.split(".")[0] for n in shards if is_adapter(n)} == {"vision", "connector"}
    assert not any(is_adapter(name) for name in instruct.weights)
    # The language model's own weights started from the merged ones, and nothing moved those of new_tokens.
    moved = (
        (instruct.weights["language.lm_head.weight"] - align.weights["language.lm_head.weight"]).abs().max()
    )
    assert 0 < moved < 0.02
    # bf16 is what the engine froze them in.
    frozen = align.weights["new_tokens.weight"].bfloat16().float()
    assert instruct.weights["new_tokens.weight"].equal(frozen)
    about = export_trained(instruct, tmp_path / "exported")
    assert about["max_logit_diff"] == 0.0
    assert all(torch.isfinite(t).all() for t in instruct.weights.values())


FORGOTTEN = """
import sys
from pathlib import Path
import torch
import trainer.run
from data_pipeline.errors import ConfigError
from trainer.config import load_recipe
from trainer.distributed import init_world
from trainer.loop import train

load_parts = trainer.run.load_parts

def with_a_forgotten_parameter(*args):
    model, tokenizer = load_parts(*args)
    model.connector.forgotten = torch.nn.Parameter(torch.ones(2))
    return model, tokenizer

trainer.run.load_parts = with_a_forgotten_parameter
recipe = load_recipe(Path(sys.argv[1]) / "recipe.yaml")
run = trainer.run.build_run(recipe, recipe.stage("align"), Path(sys.argv[1]), init_world())
try:
    train(run)
except ConfigError as e:
    print(run.state.step, e)
"""


def test_a_run_stops_before_its_first_update_where_a_parameter_gets_no_gradient(run_dir):
    with meeting_port() as port:
        done = subprocess.run(
            [sys.executable, "-c", FORGOTTEN, str(run_dir)],
            env=os.environ
            | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0", "MASTER_PORT": str(port)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "0 1 of" in done.stdout
    assert "connector.forgotten (1 of 1 ranks)" in done.stdout
    assert not (run_dir / "align" / "checkpoints").exists()


TUNE = {
    "name": "tuned",
    "stages": [
        {
            "name": "tune",
            "init_from": "backbones",
            "train": {
                "language": {"dora": {"rank": 3, "alpha": 3}},
                "connector": {"dora": {"rank": 2, "alpha": 4}},
                "vision": {"dora": {"rank": 3, "alpha": 3, "targets": ["q_proj"]}},
                "new_tokens": 1.0,
            },
            "mixture": {"scenes_qa": 1},
            "loss_on": "answers",
            "mask": "causal",
            "global_batch": 2,
            "micro_batch": 2,
            "sequence_length": 256,
            "lr": 1e-2,
            "steps": 2,
        }
    ],
}


def test_adapters_kept_apart_load_by_plain_peft_onto_plain_transformers(prepared, fovea, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(prepared / "data", run / "data")
    done = fovea("import", publish(tmp_path / "published", "mistral"), run / "backbones")
    assert done.returncode == 0, done.stderr
    page = yaml.safe_load((run / "backbones" / "model.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**TUNE, **page}))
    done = fovea("train", run / "recipe.yaml", "--stage", "tune", "--run", run)
    assert done.returncode == 0, done.stderr

    base, apart, merged = (tmp_path / name for name in ("base", "apart", "merged"))
    done = fovea("export", run / "tune", base, "--adapters", apart)
    assert (done.returncode, "--to idefics2" in done.stderr) == (2, True)
    trained = open_trained(run / "tune")
    about = export_trained(trained, base, "idefics2", apart)
    assert about["max_logit_diff"] < 1e-3
    probe = _probe(trained.recipe, trained.tokenizer)
    with pytest.raises(DataError, match="peft's logits differ"):
        compare_adapters(trained.model.logits(probe).detach() + 1, base, apart, probe)
    export_trained(trained, merged, "idefics2")
    with_adapter, without = (
        dict(Idefics2ForConditionalGeneration.from_pretrained(d, dtype=torch.float32).named_parameters())
        for d in (merged, base)
    )
    moved = {n for n in with_adapter if not with_adapter[n].equal(without[n])}
    assert {n.split(".")[1] for n in moved} == {"vision_model", "connector", "text_model"}
    loaded = Idefics2ForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    again = PeftModel.from_pretrained(loaded, apart).merge_and_unload()
    for name, weight in again.named_parameters():
        torch.testing.assert_close(weight, with_adapter[name])
