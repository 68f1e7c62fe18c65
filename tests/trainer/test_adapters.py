"""What a stage trains and what it leaves alone: adapters, their merging, the first step's gradients."""

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn

from adapted import (
    LR,
    MIXED,
    RANKS,
    RESUMED,
    STEPS,
    adapted_model,
    batch,
    plain_model,
    train_and_resume,
    tunings,
)
from data_pipeline.errors import ConfigError
from ranks import on_ranks
from trainer.config import dump_recipe, load_recipe
from trainer.distributed import World
from trainer.export.peft_layout import idefics2_layer, write_adapters
from trainer.models.adapters import attach, is_adapter, merge, split, warm_start
from trainer.models.freeze import count_parameters, describe, freeze, parameter_groups
from trainer.models.gradients import GradientCheck
from trainer.models.tuning import Tuning

ADAPTED = ("vision", "connector", "language")
KINDS = ("lora", "dora")
ALONE = World(0, 1, torch.device("cpu"))


def trained(kind: str, rank: int = 4) -> nn.Module:
    """A model whose adapters are no longer those of the start: B is not zero, magnitudes have moved."""
    model = plain_model()
    attach(model, tunings(kind, rank))
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name) or name.startswith("new_tokens"):
                parameter += 0.2 * torch.randn(parameter.shape, generator=draw)
    return model.eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().logits(batch(0, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_nothing_and_stands_beside_every_linear_layer_but_the_head(kind):
    plain, model = plain_model(), plain_model()
    linear = {n for n, m in plain.named_modules() if isinstance(m, nn.Linear) and n != "language.lm_head"}
    attach(model, tunings(kind))
    assert {n for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)} == linear
    torch.testing.assert_close(logits(model), logits(plain), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_give_what_the_adapters_gave_and_are_those_that_peft_merges(kind):
    model = trained(kind)
    seen = logits(model)
    assert (seen - logits(plain_model())).abs().max() > 0.1
    weights = merge(model.state_dict(), tunings(kind))
    again = plain_model(seed=1)
    again.load_state_dict(weights)
    torch.testing.assert_close(logits(again), seen, atol=1e-5, rtol=0)
    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            torch.testing.assert_close(weights[f"{name}.weight"], layer.get_base_layer().weight)


NEXT = ["frozen", "full", "lora", "dora", "lora of another rank"]


@pytest.mark.parametrize("before", ["full", *KINDS])
@pytest.mark.parametrize("now", NEXT)
def test_a_stage_starts_where_the_one_before_ended_whatever_each_trains(before, now):
    then = tunings(before)
    old = trained(before) if before != "full" else plain_model(seed=3)
    if now == "frozen":
        train = {"new_tokens": Tuning()}
    else:
        train = tunings("lora", rank=2) if "rank" in now else tunings(now)
    model = plain_model(seed=1)
    warm_start(model, old.state_dict(), then, train, "here")
    torch.testing.assert_close(logits(model), logits(old), atol=1e-5, rtol=0)
    freeze(model, train)
    groups = parameter_groups(model, train, 1.0, 0.0)
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(
        c.trainable for c in count_parameters(model, train)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_adapter_goes_on_as_it_is_and_a_changed_one_begins_anew(kind):
    old = trained(kind).state_dict()
    adapter = [name for name in old if is_adapter(name)]
    model = plain_model(seed=1)
    warm_start(model, old, tunings(kind), tunings(kind), "here")
    assert all(model.state_dict()[name].equal(old[name]) for name in adapter)
    changed = plain_model(seed=1)
    other = {**tunings(kind), "language": Tuning.model_validate({kind: {"rank": 4, "alpha": 9}})}
    warm_start(changed, old, tunings(kind), other, "here")
    begun = [n for n in adapter if n.startswith("language") and ".lora_B." in n]
    assert begun
    assert not any(changed.state_dict()[name].any() for name in begun)
    assert all(changed.state_dict()[n].equal(old[n]) for n in adapter if n.startswith("connector"))


def test_dropout_may_change_while_an_adapter_goes_on():
    lora, dropped = (Tuning.model_validate({"lora": {"dropout": d}}) for d in (0.0, 0.1))
    assert dropped.continues(lora)
    assert not Tuning.model_validate({"dora": {}}).continues(lora)
    assert not dropped.continues(Tuning())
    assert not dropped.continues(None)


def test_targets_name_linear_layers_by_their_last_name():
    model = plain_model()
    attach(model, {"language": Tuning.model_validate({"lora": {"targets": ["q_proj", "lm_head"]}})})
    adapters = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    assert adapters == {"q_proj", "lm_head"}


def test_a_target_that_no_layer_has_gets_the_nearest_name():
    with pytest.raises(ConfigError, match=r"train\.language.*q_prj; did you mean 'q_proj'"):
        attach(plain_model(), {"language": Tuning.model_validate({"lora": {"targets": ["q_prj"]}})})


def test_a_head_tied_to_the_embeddings_is_no_target():
    model = plain_model()
    model.language.lm_head.weight = model.language.get_input_embeddings().weight
    with pytest.raises(ConfigError, match="leave the head out"):
        attach(model, {"language": Tuning.model_validate({"dora": {"targets": ["lm_head"]}})})


@pytest.mark.parametrize("kind", KINDS)
def test_only_adapters_train_and_magnitudes_do_not_decay(kind):
    train = tunings(kind)
    model = adapted_model(train)
    on = {n for n, p in model.named_parameters() if p.requires_grad}
    assert on == {n for n in model.state_dict() if is_adapter(n)} | {"new_tokens.weight"}
    groups = {g["name"]: g for g in parameter_groups(model, train, lr=0.2, weight_decay=0.1)}
    assert ("language.no_decay" in groups) == (kind == "dora")
    assert groups["language"]["lr"] == pytest.approx(0.1)


def test_the_table_counts_each_module_s_parameters_by_how_they_are_trained():
    train = {"language": tunings("lora")["language"], "connector": 2.0}
    model = plain_model()
    plain = {n: sum(p.numel() for p in getattr(model, n).parameters()) for n in ADAPTED}
    sides = [sum(m.weight.shape) for m in model.language.model.modules() if isinstance(m, nn.Linear)]
    attach(model, {"language": train["language"]})
    freeze(model, train)
    vision, connector, language, new = count_parameters(model, train)
    assert (vision.parameters, vision.trainable, vision.how, vision.lr) == (
        plain["vision"],
        0,
        "frozen",
        None,
    )
    assert (connector.parameters, connector.trainable) == (plain["connector"], plain["connector"])
    assert (connector.how, connector.lr) == ("full", 2.0)
    assert language.trainable == 4 * sum(sides)
    assert language.parameters == plain["language"] + language.trainable
    assert (language.how, language.lr) == ("lora (rank 4, alpha 8)", 0.5)
    assert (new.trainable, new.how) == (0, "frozen")
    lines = list(describe((vision, connector, language, new)))
    assert len(lines) == 6
    assert f"{language.trainable:,}" in lines[3]


def test_parameters_count_on_the_meta_device_too():
    with torch.device("meta"):
        model = plain_model()
        attach(model, tunings("dora"))
    freeze(model, tunings("dora"))
    here = adapted_model(tunings("dora"))
    assert count_parameters(model, tunings("dora")) == count_parameters(here, tunings("dora"))


@pytest.mark.parametrize("kind", ["full", *KINDS])
def test_every_trained_parameter_gets_a_gradient_in_the_first_step(kind):
    model = adapted_model(tunings(kind))
    check = GradientCheck(model)
    model(batch(0, 1)).backward()  # text alone
    check.check(ALONE)


def test_a_parameter_that_no_gradient_reaches_stops_the_run_by_name():
    model = adapted_model(tunings("lora"))
    model.connector.forgotten = nn.Parameter(torch.ones(2))
    check = GradientCheck(model)
    model(batch(0, 0)).backward()
    with pytest.raises(ConfigError, match=r"1 of \d+ .*connector\.forgotten \(1 of 1 ranks\)"):
        check.check(ALONE)
    check.check(ALONE)  # later steps are not watched


def test_a_frozen_tower_keeps_no_graph_and_one_with_an_adapter_does():
    seen = []
    for train in (tunings("lora"), {"language": tunings("lora")["language"]}):
        model = adapted_model(train)
        model.vision.post_layernorm.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
        model(batch(0, 0)).backward()
    assert seen == [True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_plain_peft_loads_what_is_written_onto_what_stands_below(kind, tmp_path):
    model, train = plain_model(), tunings(kind)
    train |= {"connector": Tuning.model_validate({kind: {"rank": 2, "alpha": 3}})}
    attach(model, train)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.1 * torch.randn(parameter.shape) * is_adapter(name)
    below, tensors = split(model.state_dict())
    again = plain_model(seed=1)
    again.load_state_dict(below)
    assert not logits(again).allclose(logits(model), atol=1e-2)
    write_adapters(tensors, train, tmp_path / "base", tmp_path / "adapter")
    again.config = {}  # peft asks it what model this is; ours is a page of the recipe
    wrapped = PeftModel.from_pretrained(again, tmp_path / "adapter")
    again.config = model.config
    assert logits(again).equal(logits(model))
    wrapped.save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / d / "adapter_model.safetensors") for d in ("adapter", "theirs"))
    assert ours.keys() == theirs.keys()


def test_layers_of_an_idefics2_have_its_names_and_its_longer_head_is_refused():
    query = "connector.layers.0.query"
    assert idefics2_layer(query) == "model.connector.perceiver_resampler.layers.0.self_attn.q_proj"
    with pytest.raises(ConfigError, match="lm_head cannot be written apart"):
        idefics2_layer("language.lm_head")


def test_two_kinds_of_adapters_are_not_written_as_one(tmp_path):
    model = plain_model()
    attach(model, MIXED)
    with pytest.raises(ConfigError, match="dora and lora"):
        write_adapters(split(model.state_dict())[1], MIXED, tmp_path, tmp_path / "out")
    with pytest.raises(ConfigError, match="there are none"):
        write_adapters({}, {"connector": Tuning()}, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_page_says_adapters_and_factors_and_comes_back_as_it_was_written(tmp_path):
    adapter = "{lora: {rank: 8, alpha: 4, dropout: 0.1, targets: [q_proj]}, lr: 0.5}"
    recipe = load_recipe("tiny", [f"stages.align.train.language={adapter}"])
    train = recipe.stage("align").train
    assert train["connector"] == Tuning(lr=1.0)
    assert (train["language"].kind, train["language"].lr, train["language"].lora.rank) == ("lora", 0.5, 8)
    page = tmp_path / "page.yaml"
    page.write_text(dump_recipe(recipe))
    assert "connector: 1.0" in page.read_text()
    assert load_recipe(page) == recipe


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("language={lora: {rnk: 4}}", r"language\.lora\.rnk: unknown key 'rnk'; did you mean 'rank'"),
        ("language={lora: {}, dora: {}}", "not both"),
        ("language={loar: {}}", "did you mean 'lora'"),
        ("language=0", "greater than 0"),
        ("language={lora: {rank: 0}}", "greater than or equal to 1"),
        ("new_tokens={lora: {}}", "train it in full"),
        ("langauge=1", "did you mean 'language'"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_torch_is_there(value, said):
    with pytest.raises(ConfigError, match=said):
        load_recipe("tiny", [f"stages.align.train.{value}"])


def twin_losses() -> list[float]:
    """One process, plain torch, all ranks' batches at once."""
    model = adapted_model(MIXED)
    groups = parameter_groups(model, MIXED, lr=LR, weight_decay=0.1)
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95))
    losses = []
    for step in range(STEPS):
        batches = [batch(step, rank) for rank in range(RANKS)]
        loss = sum(model(b) for b in batches) / sum(b.target_tokens for b in batches)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_two_ranks_of_zero3_train_and_restore_adapters_as_one_process_does(tmp_path):
    seen, _ = on_ranks(train_and_resume, tmp_path)
    assert seen["unbroken"] == pytest.approx(twin_losses(), abs=1e-5)
    assert len(set(seen["unbroken"])) == STEPS
    assert seen["resumed"] == seen["unbroken"][RESUMED:]
    assert seen["moved"] == seen["to_move"]
