"""A recipe with experts by the commands that a user gives: two ranks, resume, the next stage, exports."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from data_pipeline.errors import DataError
from data_pipeline.stream.tokens import Tokenizer
from documentation import text_of
from trainer.config import load_recipe
from trainer.engine.schedule import lr_factor
from trainer.export.consolidate import consolidate
from trainer.models.build import build_model
from trainer.models.freeze import freeze, parameter_groups
from trainer.models.language import load_language
from trainer.models.moe.layer import MoELayer
from trainer.models.vision import load_vision
from trainer.stage_stream import open_datasets, open_stream
from trainer.trained import export_trained, open_trained

STEPS, RANKS = 4, 2
MOE = "model.moe={experts: 4, every: 1, balance: 0.5, z: 0.1}"
STAGES = (
    MOE,
    "stages.align.train={connector: 1.0, new_tokens: 1.0, language: 0.5}",
    f"stages.align.steps={STEPS}",
    "stages.align.checkpoint_every=2",
    "stages.align.micro_batch=1",
    "stages.align.neftune_alpha=0",
    "stages.instruct.steps=2",
    "stages.instruct.train={connector: 1.0}",
)
FIGURES = ("expert_share_max", "expert_share_min", "router_entropy", "router_balance", "router_z")


def twin(run_dir: Path) -> tuple[list[float], list[dict[str, float]], torch.nn.Module]:
    """Plain PyTorch over the micro-batches of both ranks, in one process, with losses of its own."""
    recipe = load_recipe(run_dir / "recipe.yaml", [*STAGES, "model.moe.backend=loop"])
    stage, moe = recipe.stage("align"), recipe.model.moe
    torch.manual_seed(recipe.seed)
    backbones = run_dir / "backbones"
    model = build_model(
        recipe.model, load_vision(backbones / "vision"), load_language(backbones / "language"), stage.mask
    )
    freeze(model, stage.train)
    scores: list[torch.Tensor] = []
    for layer in model.modules():
        if isinstance(layer, MoELayer):
            layer.router.register_forward_hook(lambda *given: scores.append(given[2]))
    groups = parameter_groups(model, stage.train, lr=stage.lr, weight_decay=stage.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=stage.betas)
    tokenizer, data = Tokenizer.load(backbones / "tokenizer"), open_datasets(recipe, run_dir)
    streams = [
        open_stream(recipe, stage, run_dir, data, tokenizer, rank=r, world_size=RANKS) for r in range(RANKS)
    ]
    losses, figures = [], []
    for step in range(STEPS):
        factor = lr_factor(step, steps=STEPS, warmup_steps=2, schedule="cosine", min_ratio=0.0)
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * factor * group["lr_scale"]
        batches = [b for stream in streams for b in stream.next()]
        assert len(batches) == 4
        targets = sum(b.target_tokens for b in batches)
        tokens = sum(int((b.document_ids > 0).sum()) for b in batches)
        loss = beside = torch.zeros(())
        layers = len(model.language.model.layers)
        balances, entropies, taken = [0.0] * layers, [0.0] * layers, torch.zeros(layers, moe.experts)
        for batch in batches:
            scores.clear()
            loss = loss + model(batch) / targets
            real = (batch.document_ids > 0).flatten()
            share = int(real.sum()) / tokens
            for number, of_layer in enumerate(scores):
                mine = of_layer[real]
                p = mine.softmax(-1)
                chosen = F.one_hot(mine.topk(moe.top_k).indices, moe.experts).float().sum(1)
                balance = moe.experts * (chosen.mean(0) / moe.top_k * p.mean(0)).sum()
                z = mine.logsumexp(-1).square().mean()
                beside = beside + share * (moe.balance * balance + moe.z * z)
                balances[number] += share * float(balance.detach())
                entropies[number] += share * float(-(p * p.log()).sum(-1).mean().detach())
                taken[number] += chosen.sum(0)
        (loss + beside).backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], stage.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        figures.append(
            {
                "expert_share_max": float(taken.max()) / tokens / moe.top_k,
                "expert_share_min": float(taken.min()) / tokens / moe.top_k,
                "router_balance": sum(balances) / layers,
                "router_entropy": sum(entropies) / layers,
            }
        )
    for stream in streams:
        stream.close()
    return losses, figures, model


def words(run_dir: Path) -> list[object]:
    """`fovea train` on two ranks in float32, but for the stage."""
    config = json.loads(Path("ds_configs/zero3.json").read_text())
    config["bf16"] = {"enabled": False}
    (run_dir / "fp32.json").write_text(json.dumps(config))
    return [
        "train", run_dir / "recipe.yaml", "--run", run_dir, "--nproc", RANKS, *STAGES,
        f"stages.align.ds_config={run_dir}/fp32.json", f"stages.instruct.ds_config={run_dir}/fp32.json",
        "--stage",
    ]  # fmt: skip


def test_two_ranks_and_two_micro_batches_train_experts_as_one_process_does(run_dir, fovea, metrics):
    done = fovea(*words(run_dir), "align")
    assert done.returncode == 0, done.stderr
    seen = metrics(run_dir / "align")
    losses, figures, model = twin(run_dir)
    assert [m["loss"] for m in seen] == pytest.approx(losses, abs=2e-5)
    for logged, counted in zip(seen, figures, strict=True):
        assert {k: logged[k] for k in counted} == pytest.approx(counted, abs=1e-4)
    trained = consolidate(run_dir / "align" / "checkpoints" / f"step_{STEPS:06}")
    for name, weight in model.named_parameters():
        torch.testing.assert_close(trained[name], weight.detach(), atol=2e-4, rtol=0, msg=name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_experts_resume_are_handed_on_and_leave_as_they_are(run_dir, fovea, metrics, tmp_path):
    done = fovea(*words(run_dir), "align")
    assert done.returncode == 0, done.stderr
    seen = metrics(run_dir / "align")
    trained = consolidate(run_dir / "align" / "checkpoints" / f"step_{STEPS:06}")
    shutil.rmtree(run_dir / "align" / "checkpoints" / f"step_{STEPS:06}")
    done = fovea(*words(run_dir), "align")
    assert done.returncode == 0, done.stderr
    assert "resuming after step 2" in done.stdout
    exact = ("loss", "grad_norm", *FIGURES)
    assert [{k: m[k] for k in exact} for m in metrics(run_dir / "align")] == [
        {k: m[k] for k in exact} for m in seen
    ]

    done = fovea(*words(run_dir), "instruct")
    assert done.returncode == 0, done.stderr
    opened = open_trained(run_dir / "instruct")
    of_experts = [n for n in trained if ".experts." in n or ".router." in n]
    assert len(of_experts) == 2 * 4
    assert all(opened.weights[n].equal(trained[n]) for n in of_experts)  # frozen there
    assert all(set(FIGURES) <= m.keys() for m in metrics(run_dir / "instruct"))
    about = export_trained(opened, tmp_path / "exported")
    assert about["max_logit_diff"] == 0.0
    done = fovea("export", run_dir / "instruct", tmp_path / "published", "--to", "idefics2")
    assert (done.returncode, "model.moe" in done.stderr) == (DataError.exit_code, True)
    assert not (tmp_path / "published").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_dense_stage_is_upcycled_by_the_next_one_rank_by_rank(run_dir, fovea):
    dense = [word for word in words(run_dir) if word != MOE]
    for given, stage in ((dense, "align"), (words(run_dir), "instruct")):
        done = fovea(*given, stage)
        assert done.returncode == 0, done.stderr
    before, after = (
        consolidate(run_dir / stage / "checkpoints" / f"step_{step:06}")
        for stage, step in (("align", STEPS), ("instruct", 2))
    )
    copied = [name for name in after if ".experts." in name]
    assert len(copied) == 2 * 3
    for name in copied:  # frozen there
        ffn = before[name.replace(".experts", "") + ".weight"]
        assert all(expert.equal(ffn) for expert in after[name])


def test_an_adapter_beside_experts_is_an_error_of_the_recipe(run_dir, fovea):
    done = fovea(
        "train", run_dir / "recipe.yaml", "--stage", "align", "--run", run_dir, "model.moe={}",
        "stages.align.train={language: {lora: {rank: 2}}}",
    )  # fmt: skip
    assert done.returncode == 2
    assert "'align'" in done.stderr
    assert "train.language" in done.stderr
    assert "experts" in done.stderr


def test_the_figures_that_are_logged_are_explained():
    table = text_of("training.md").split("## Experts\n", 1)[1].split("\n## ", 1)[0]
    assert all(f"`{name}`" in table for name in FIGURES)
