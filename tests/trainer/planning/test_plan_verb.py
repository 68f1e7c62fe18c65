"""`fovea plan` on the recipes that ship: complete, quick, and each suggestion is what another plan says."""

import json
import math
import re
import time
from typing import Any

import pytest

from data_pipeline.errors import ConfigError
from trainer.cli import main
from trainer.config import RECIPES, load_recipe
from trainer.planning.advice import Advice, advice
from trainer.planning.hardware import GPUS, Cluster, gpu_named
from trainer.planning.pages import lines
from trainer.planning.plan import Asked, Plan, StagePlan, plan_of
from trainer.planning.record import Prices

SHAPED = [p.stem for p in sorted(RECIPES.glob("*.yaml")) if load_recipe(p.stem).backbones.expects]
STAGES = ("align", "pretrain", "instruct", "adapt")
LARGE = [
    "defaults.micro_batch=64",
    "stages.adapt.global_batch=256",
    "defaults.activation_checkpointing=false",
]
H100 = ["--nodes", "1", "--gpus-per-node", "4", "--gpu", "h100"]


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        return [n for v in (value.values() if isinstance(value, dict) else value) for n in numbers(v)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n.startswith("idefics2") else ()) for n in SHAPED]
)
def test_every_recipe_of_a_real_size_is_planned_in_seconds_and_told_whole(name, capsys):
    began = time.process_time()
    assert main(["plan", name, *H100, "--price", "2", "--disk-gbps", "8", "--json"]) == 0
    assert time.process_time() - began < 60  # 1 to 4 on a quiet core
    told = json.loads(capsys.readouterr().out)
    recipe = load_recipe(name)
    assert [s["stage"] for s in told["stages"]] == [s.name for s in recipe.stages]
    assert all(math.isfinite(n) for n in numbers(told))
    for stage, told_stage in zip(recipe.stages, told["stages"], strict=True):
        memory, flops = (dict(told_stage[key]) for key in ("memory", "flops_per_step"))
        total, margin = memory.pop("total"), memory.pop("margin")
        assert sum(memory.values()) == total
        assert total + margin == gpu_named("h100").memory
        assert flops.pop("total") == sum(flops.values())
        assert told_stage["tokens_per_step"] == stage.global_batch * stage.sequence_length
        assert told_stage["micro_batch"] * told_stage["accumulation"] * 4 == stage.global_batch
        assert told_stage["days"] == pytest.approx(stage.steps * told_stage["step"]["total"] / 86_400)
        assert told_stage["checkpoint_write_s"] == pytest.approx(told_stage["checkpoint"] / 1e9)
    assert told["days"] == pytest.approx(sum(s["days"] for s in told["stages"]))
    assert told["cost"] == pytest.approx(2 * 24 * 4 * told["days"])
    assert [row["gpus"] for row in told["scaling"]] == [2**n for n in range(11)]
    here = next(row for row in told["scaling"] if row["gpus"] == 4)
    assert here["days"] == pytest.approx(told["days"])


def test_the_page_says_all_parts_what_is_modelled_and_no_cost_without_a_price(capsys):
    assert main(["plan", "align-900m", *H100]) == 0
    page = capsys.readouterr().out
    for said in ("Modelled: other memory", "margin", "MFU", "assumed", "data sheet", "1,024", "Suggestions"):
        assert said in page
    assert "cost" not in page
    assert all(len(line) <= 130 for line in page.splitlines())
    assert main(["plan", "align-900m", *H100, "--price", "2"]) == 0
    assert "cost" in capsys.readouterr().out


def test_what_does_not_fit_is_said_with_code_3_and_a_way_out(capsys):
    argv = ["plan", "align-900m", "--nodes", "1", "--gpus-per-node", "4", "--gpu", "a100-40gb", *LARGE]
    assert main(argv) == 3
    page = capsys.readouterr().out
    assert "DOES NOT FIT: stage 'pretrain' lacks" in page
    assert "pretrain: micro_batch: 8: it fits then" in page
    assert main([*argv, *(f"stages.{s}.micro_batch=4" for s in STAGES)]) == 0


def told_of(cluster: Cluster, *overrides: str) -> tuple[Plan, tuple[Advice, ...]]:
    plan = plan_of(load_recipe("align-900m", [*overrides]), Asked(cluster))
    return plan, advice(plan)


LARGE = [
    "defaults.micro_batch=64",
    "stages.adapt.global_batch=256",
    "defaults.activation_checkpointing=false",
]


@pytest.mark.parametrize(("gpu", "overrides"), [("h100", []), ("a100-40gb", LARGE)], ids=["fits", "does not"])
def test_advice_that_is_taken_gives_what_it_says(gpu, overrides):
    cluster = Cluster(gpu_named(gpu), 1, 4, 3200)
    plan, found = told_of(cluster, *overrides)
    assert found
    assert plan.fits == (gpu == "h100")
    told = found[0]
    key, value = told.setting.split(": ")
    taken = plan_of(
        load_recipe("align-900m", [*overrides, f"stages.{told.stage}.{key}={value}"]), Asked(cluster)
    )
    stage = next(s for s in taken.stages if s.stage.name == told.stage)
    assert stage.step.total == pytest.approx(told.step_s[1])
    assert stage.memory.total == told.memory[1]
    assert stage.margin >= 0


@pytest.mark.parametrize(("name", "copies"), [("zero3-offload", True), ("zero3-nvme", False)])
def test_a_copy_of_a_checkpoint_is_counted_where_one_is_made(name, copies):
    cluster = Cluster(gpu_named("h100"), 1, 4, 3200)
    recipe = load_recipe("align-900m", [f"defaults.ds_config={name}"])
    (stage, *_) = plan_of(recipe, Asked(cluster)).stages
    assert ("checkpoint copy" in stage.host) == copies


def test_an_optimizer_on_a_drive_takes_no_memory_but_its_buffers():
    cluster = Cluster(gpu_named("h100"), 1, 4, 3200)

    def stage_with(name: str) -> StagePlan:
        plan = plan_of(load_recipe("align-900m", [f"defaults.ds_config={name}"]), Asked(cluster))
        assert ("drive" in "\n".join(lines(plan, (), Prices()))) == (name == "zero3-nvme")
        return plan.stages[1]

    memory, drive = stage_with("zero3-offload"), stage_with("zero3-nvme")
    assert (memory.drive, drive.drive) == (0, memory.host["optimizer"])
    assert "optimizer" not in drive.host
    group = 50_000_000  # of ds_configs/zero3-nvme.json, as its 12 buffers, of float32
    assert drive.host["swap buffers"] == 12 * 4 * group


@pytest.mark.slow
def test_the_bound_on_pictures_that_is_advised_is_the_largest_that_fits():
    tight = ["defaults.micro_batch=64", "stages.adapt.global_batch=256"]
    cluster = Cluster(gpu_named("h100"), 1, 4, 3200)
    _, found = told_of(cluster, *tight)
    (told,) = (a for a in found if a.stage == "instruct" and a.setting.startswith("images_per_row"))
    most = int(told.setting.split(": ")[1])

    def fullest(bound: int) -> int:
        page = load_recipe("align-900m", [*tight, f"stages.instruct.images_per_row={bound}"])
        return (
            plan_of(page.model_copy(update={"stages": page.stages[2:3]}), Asked(cluster))
            .stages[0]
            .fullest.total
        )

    assert fullest(most) == told.memory[1]
    assert fullest(most) <= cluster.gpu.memory < fullest(most + 1)


def test_less_sharding_or_hpz_is_advised_where_nodes_talk_slowly_and_not_within_a_node():
    def settings(nodes: int, overrides: str) -> set[str]:
        cluster = Cluster(gpu_named("h100"), nodes=nodes, per_node=4, network=50)
        _, found = told_of(cluster, overrides)
        return {a.setting for a in found if a.setting.startswith("ds_config")}

    assert settings(1, "defaults.micro_batch=16") == set()
    far = settings(16, "defaults.micro_batch=1")
    assert far
    assert far <= {"ds_config: zero3-hpz", "ds_config: zero2", "ds_config: zero1"}


def test_a_recipe_that_does_not_say_what_its_backbones_are_is_planned_with_those_that_are_made(capsys):
    assert main(["plan", "tiny", "--nodes", "1", "--gpus-per-node", "2", "--gpu", "h100"]) == 0
    shown = capsys.readouterr().out
    assert "Backbones: as `fovea backbones` makes them" in shown
    assert re.search(r"^  all +3\.1 \(0\.1\)  3\.1 \(2\.5\)", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["align-900m", "--nodes", "1", "--gpu", "h10"], r"--gpu h10: not known; did you mean .*Known: a100"),
        (["align-900m", "--nodes", "1", "--gpu", "h100"], r"does not divide over 8 ranks .*1, 2, 4"),
        (["align-900m", *H100, "--ds-config", "zero4"], "ds_config 'zero4' is neither"),
        (["align-900m", *H100, "--ds-config", "zero3-hpz"], "zero_hpz_partition_size 8 does not divide 4"),
        (
            ["align-900m", *H100, "--images-per-row", "99"],
            "--images-per-row 99: a row of stage 'align' holds",
        ),
        (["align-900m", *H100, "--patches-per-image", "730"], "has 1 to 729"),
    ],
)
def test_wrong_input_is_refused_with_what_is_allowed(argv, said, capsys):
    assert main(["plan", *argv]) == ConfigError.exit_code
    assert re.search(said, capsys.readouterr().err, re.DOTALL)


@pytest.mark.parametrize(
    "option", ["--mfu=1.5", "--mfu=nan", "--price=-1", "--inter-node-gbps=0", "--nodes=0"]
)
def test_numbers_that_mean_nothing_are_refused(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "align-900m", *H100, option])


def test_options_are_what_the_plan_is_made_with(capsys):
    def planned(*options: str) -> dict[str, Any]:
        assert main(["plan", "align-900m", *H100, "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)

    plain, fast = planned(), planned("--mfu", "0.9")
    assert fast["days"] < 0.6 * plain["days"]
    few = planned("--images-per-row", "1", "--patches-per-image", "100")
    assert few["stages"][0]["images_per_step"] == 256
    assert few["stages"][0]["flops_per_step"]["vision"] < plain["stages"][0]["flops_per_step"]["vision"] / 6
    assert planned("--ds-config", "zero2")["stages"][1]["zero_stage"] == 2
    assert planned("stages.align.steps=24000")["stages"][0]["days"] == 2 * plain["stages"][0]["days"]


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_has_a_peak_and_a_memory(name):
    gpu = gpu_named(name.upper())
    assert gpu.flops > 1e14
    assert 30 * 2**30 < gpu.memory < 200 * 2**30
