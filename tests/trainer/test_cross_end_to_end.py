"""A cross-attention recipe by the commands that a user gives: two stages, evaluated, sampled, exported."""

import dataclasses
import json

import pytest
import torch

from data_pipeline.errors import DataError
from trainer.export.hf import load_exported
from trainer.models.crossed import CrossAttentionVLM
from trainer.trained import _probe, evaluate_trained, export_trained, open_trained

STAGES = ("align", "instruct")
CROSSED = [
    "model.architecture=cross_attention",
    "model.cross_attention={every: 2}",
    "model.connector={kind: perceiver, latents: 4, depth: 1, heads: 2, kv_heads: 1, head_dim: 8}",
    "stages.align.train={connector: 1, new_tokens: 1, cross_attention: 1}",
    "stages.instruct.train={cross_attention: {lora: {rank: 2}}, language: 0.5}",
    *(f"stages.{stage}.{key}" for stage in STAGES for key in ("steps=3", "checkpoint_every=3")),
]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_stages_train_and_the_export_reopens_to_the_last_bit(run_dir, fovea, metrics, tmp_path):
    for stage in STAGES:
        done = fovea("train", run_dir / "recipe.yaml", "--run", run_dir, *CROSSED, "--stage", stage)
        assert done.returncode == 0, done.stderr
    assert len(metrics(run_dir / "align")) == 3
    tables = {}
    for stage in STAGES:
        page = json.loads((run_dir / stage / "parameters.json").read_text())
        tables[stage] = {m["module"]: m for m in page["modules"]}
    assert tables["align"]["cross_attention"]["how"] == "full"
    assert tables["instruct"]["cross_attention"]["how"] == "lora (rank 2, alpha 16)"
    align, instruct = (open_trained(run_dir / stage) for stage in STAGES)
    assert isinstance(instruct.model, CrossAttentionVLM)
    gates = {n: t for n, t in align.weights.items() if n.endswith("gate")}
    assert len(gates) == 2
    assert all(t.any() for t in gates.values())  # they began at 0
    assert all(not instruct.weights[n].equal(t) for n, t in gates.items())  # and go on beside an adapter

    about = export_trained(instruct, tmp_path / "exported")
    assert about["max_logit_diff"] == 0.0
    probe = _probe(instruct.recipe, instruct.tokenizer)
    with torch.no_grad():
        reopened = load_exported(tmp_path / "exported").logits(probe)
        assert reopened.equal(instruct.model.logits(probe))
        instruct.model.cross_attention.blocks[0].attention_gate.add_(1)
        assert not reopened.equal(instruct.model.logits(probe))
    with pytest.raises(DataError, match="architecture: cross_attention"):
        export_trained(align, tmp_path / "idefics2", "idefics2")

    # The evaluator draws as the recipe says: again the same, at another temperature another answer.
    def answers(**how):
        config = align.recipe.evaluation.model_copy(update={"captions": 6, "questions": 6, **how})
        recipe = align.recipe.model_copy(update={"evaluation": config})
        evaluate_trained(dataclasses.replace(align, recipe=recipe))
        file = next((run_dir / "align" / "eval").glob("*/examples.json"))
        return [e["answer"] for e in json.loads(file.read_text())]

    drawn = answers(temperature=1.5, batch=4)
    assert answers(temperature=1.5, batch=3) == drawn
    assert answers() != drawn
    letter = next(c for c in "".join(drawn) if c.isalpha())
    assert [a.partition(letter)[0].strip() for a in drawn] == answers(temperature=1.5, stop=(letter,))
