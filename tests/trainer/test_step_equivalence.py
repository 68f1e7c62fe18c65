"""ZeRO-3 over ranks and micro-batches takes the step that one process takes on the whole batch."""

import json
from pathlib import Path

import pytest
import torch

from data_pipeline.stream.tokens import Tokenizer
from trainer.config import load_recipe
from trainer.engine.schedule import lr_factor
from trainer.models.build import build_model
from trainer.models.freeze import freeze, parameter_groups
from trainer.models.language import load_language
from trainer.models.vision import load_vision
from trainer.stage_stream import open_datasets, open_stream

STEPS = 4


def plain_torch_losses(run_dir: Path) -> list[float]:
    """The naive twin: no DeepSpeed, no ranks, no accumulation; float32."""
    recipe = load_recipe(run_dir / "recipe.yaml", ["stages.align.micro_batch=4"])
    stage = recipe.stage("align")
    torch.manual_seed(recipe.seed)
    backbones = run_dir / "backbones"
    model = build_model(
        recipe.model, load_vision(backbones / "vision"), load_language(backbones / "language"), stage.mask
    )
    freeze(model, stage.train)
    groups = parameter_groups(model, stage.train, lr=stage.lr, weight_decay=stage.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=stage.betas)
    tokenizer = Tokenizer.load(backbones / "tokenizer")
    stream = open_stream(recipe, stage, run_dir, open_datasets(recipe, run_dir), tokenizer)
    losses = []
    for step in range(STEPS):
        factor = lr_factor(step, steps=stage.steps, warmup_steps=2, schedule="cosine", min_ratio=0.0)
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * factor * group["lr_scale"]
        (batch,) = stream.next()
        loss = model(batch) / batch.target_tokens
        loss.backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        torch.nn.utils.clip_grad_norm_(trained, stage.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    stream.close()
    return losses


@pytest.mark.parametrize(("ranks", "micro"), [(1, 2), (2, 2), (2, 1)])
def test_losses_equal_one_process_on_the_whole_batch(ranks, micro, run_dir, fovea, metrics):
    config = json.loads(Path("ds_configs/zero3.json").read_text())
    config["bf16"] = {"enabled": False}
    (run_dir / "fp32.json").write_text(json.dumps(config))
    done = fovea(
        "train", run_dir / "recipe.yaml", "--stage", "align", "--run", run_dir, "--nproc", ranks,
        f"stages.align.micro_batch={micro}", "stages.align.neftune_alpha=0",
        f"stages.align.ds_config={run_dir}/fp32.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours = [m["loss"] for m in metrics(run_dir / "align")][:STEPS]
    assert ours == pytest.approx(plain_torch_losses(run_dir), abs=2e-5)
