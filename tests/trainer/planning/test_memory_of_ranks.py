"""Planned bytes of states beside those that a DeepSpeed engine of the same model holds, and saves, on real
ranks."""

import gc
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

from modalities import ALL, ROWS, Case, batch_of, model_of, page_of, stage_of
from ranks import on_ranks
from toy_backbones import MISTRAL
from trainer.config import Recipe, Stage
from trainer.distributed import World, all_sum
from trainer.engine import saving
from trainer.engine.ds_config import merge_ds_config
from trainer.engine.ds_keys import Page
from trainer.engine.initialize import initialize
from trainer.engine.state import TrainState
from trainer.models.freeze import parameter_groups
from trainer.planning.hardware import Assumed
from trainer.planning.memory import checkpoint_bytes, memory, states
from trainer.planning.shape import shape_of

ACCUMULATION, BUCKET = 2, 4096
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
EXPECTS = {
    "vision": VISION | {"image_size": 32, "patch_size": 8},
    "language": MISTRAL | {"model_type": "mistral", "vocab_size": 40},
    "layout": "tiny",
}
TRAINS = {
    "most": Case(train={m: ALL[m] for m in ("connector", "language", "new_tokens")}, model={}, stage={}),
    "adapters": Case(
        train={"connector": 1.0, "new_tokens": 1.0, "language": {"lora": {"rank": 16}}}, model={}, stage={}
    ),
}
BF16 = {"bf16": {"enabled": True}, "communication_data_type": "fp32"}
SUMMED = {"data_types": {"grad_accum_dtype": "fp32"}}
SMALL_STATES = {"bf16": BF16["bf16"] | {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}}
HOST = {"device": "cpu", "pin_memory": False}


def zero(stage: int, *more: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """Small buckets, and nothing that stays gathered."""
    page: dict[str, Any] = {}
    for part in more:
        page |= part
    own = {"stage": stage, "reduce_bucket_size": BUCKET, "overlap_comm": stage in (1, 2)} | keys
    if stage == 3:
        none = {"stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0}
        own = none | {"stage3_param_persistence_threshold": 0} | own
    return page | {"zero_optimization": own}


CASES = {
    "0": zero(0),
    "1": zero(1),
    "2": zero(2),
    "3": zero(3),
    "1 bf16": zero(1, BF16),
    "2 bf16": zero(2, BF16, SUMMED),
    "3 bf16": zero(3, BF16, SUMMED),
    "3 bf16, small kept whole": zero(3, BF16, SUMMED, stage3_param_persistence_threshold=600),
    "3 bf16 states": zero(3, BF16, SMALL_STATES),
    "2 offload": zero(2, BF16, SUMMED, offload_optimizer=HOST),
    "3 offload": zero(3, BF16, SUMMED, offload_optimizer=HOST, offload_param=HOST),
}


def recipe_of(case: Case, ranks: int) -> tuple[Recipe, Stage]:
    stage = stage_of(case, ranks, 1)
    page = {"name": "held", "backbones": {"expects": EXPECTS}, "model": page_of(case).model_dump()}
    return Recipe.model_validate(page | {"stages": [stage.model_dump(mode="json")]}), stage


def nbytes(tensors: Iterable[torch.Tensor | None]) -> int:
    """Of their storages, each once."""
    stores = [t.untyped_storage() for t in tensors if t is not None]
    return sum({s._cdata: s.nbytes() for s in stores}.values())


def tensors_alive() -> list[torch.Tensor]:
    """All that Python has made since the last gc.freeze(), with their gradients."""
    gc.collect()
    found = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
    return found + [t.grad for t in found if t.is_leaf and t.grad is not None]


def held(world: World, cases: list[tuple[str, str]], out: Path) -> dict[tuple[str, str], dict[str, int]]:
    """Bytes on this rank when the gradients of a second step are there, by part; `gradients`: at their most
    after a micro-batch. Each case leaves a checkpoint below `out`."""
    return {
        (name, train): _held(world, TRAINS[train], CASES[name], out / name / train) for name, train in cases
    }


def _held(world: World, case: Case, config: dict[str, Any], out: Path) -> dict[str, int]:
    gc.collect()
    gc.freeze()
    _, stage = recipe_of(case, world.size)
    model = model_of(case, stage)
    groups = parameter_groups(model, stage.train, lr=stage.lr, weight_decay=0.0)
    merged = merge_ds_config(
        config, micro_batch=ROWS, accumulation=ACCUMULATION, world_size=world.size, clip=1.0
    )
    engine = initialize(model, groups, merged, lr=stage.lr, betas=stage.betas)
    gradients = 0
    for step in range(2):
        for micro in range(ACCUMULATION):
            engine.set_gradient_accumulation_boundary(micro == ACCUMULATION - 1)
            loss = engine(batch_of(case, step, world.rank, micro))
            engine.backward(loss)
            model.target_losses = loss = None
            # The first step's moments are not there before its end.
            if step == 1:
                for _ in range(4):  # gloo's threads hold the tensors of their last collective
                    all_sum(world, 0.0)
                alive = nbytes(tensors_alive())
                parts = _parts(engine, model)
                gradients = max(gradients, alive - sum(parts.values()))
        engine.step()
    saving.save(engine, out, TrainState(step=1), {}, world, keep=2)
    engine.destroy()
    return parts | {"gradients": gradients}


def _parts(engine: Any, model: torch.nn.Module) -> dict[str, int]:
    optimizer = engine.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    moments = [t for s in inner.state.values() for t in s.values() if torch.is_tensor(t) and t.numel() > 1]
    stored = [(p.data, getattr(p, "ds_tensor", None)) for p in model.parameters()]
    weights = nbytes(t for pair in stored for t in pair if t is not None and t.numel())
    masters = getattr(
        optimizer, "fp32_partitioned_groups_flat", getattr(optimizer, "single_partition_of_fp32_groups", [])
    )
    buckets = [b.buffer for b in getattr(optimizer, "ipg_buckets", {}).values()]
    return {
        "weights": weights,
        "optimizer": nbytes(moments) + nbytes(masters),
        "buckets": nbytes(t for b in buckets for t in (b if isinstance(b, list) else [b])),
    }


def stored(directory: Path) -> int:
    """Bytes of the tensors that COMPLETE.json tells of."""
    sizes = {"F32": 4, "BF16": 2}
    tensors = json.loads((directory / "COMPLETE.json").read_text())["tensors"].values()
    return sum(math.prod(t["shape"]) * sizes[dtype] for t in tensors for dtype in t["dtype"].values())


def planned(name: str, train: str, ranks: int) -> dict[str, int]:
    """The same, where the host is the device."""
    recipe, stage = recipe_of(TRAINS[train], ranks)
    page, weights = Page.model_validate(CASES[name]), shape_of(recipe, stage).weights
    here, host = states(weights, page, ranks)
    return {part: getattr(here, part) + getattr(host, part) for part in ("weights", "gradients", "optimizer")}


def check(ranks: int, cases: list[tuple[str, str]], out: Path) -> None:
    for rank, found in enumerate(on_ranks(held, cases, out, ranks=ranks)):
        for (name, train), real in found.items():
            plan = planned(name, train, ranks)
            where = f"ZeRO {name}, {train} trained, rank {rank} of {ranks}: {real}, planned {plan}"
            assert real["optimizer"] == pytest.approx(plan["optimizer"], rel=0.03), where
            both = real["weights"] + real["gradients"], plan["weights"] + plan["gradients"]
            assert both[0] == pytest.approx(both[1], rel=0.15), where
    for name, train in cases:
        recipe, stage = recipe_of(TRAINS[train], ranks)
        sizes = checkpoint_bytes(shape_of(recipe, stage).weights, Page.model_validate(CASES[name]))
        folder = out / name / train / "checkpoints"
        for pattern, size in zip(("step_*", "frozen-*"), sizes, strict=True):
            (saved,) = folder.glob(pattern)
            assert stored(saved) == size, (name, train, pattern)


SOME = [("0", "most"), ("2 bf16", "most"), ("3 bf16 states", "most"), ("3 bf16", "adapters")]


@pytest.mark.slow
def test_two_ranks_hold_and_save_what_is_planned(tmp_path):
    check(2, SOME, tmp_path)


@pytest.mark.slow
def test_one_rank_holds_and_saves_what_is_planned(tmp_path):
    check(1, SOME, tmp_path)


@pytest.mark.slow
def test_four_ranks_hold_and_save_what_is_planned_under_every_stage(tmp_path):
    check(4, [(name, train) for name in CASES for train in TRAINS], tmp_path)


def gathered(world: World, keys: list[dict[str, int]]) -> list[int]:
    """The most elements of parameters that are whole at any module's beginning or end, once DeepSpeed knows
    their order; for each configuration."""
    case, found = TRAINS["most"], []
    for live in keys:
        _, stage = recipe_of(case, world.size)
        model = model_of(case, stage)
        model.enable_activation_checkpointing(True)
        groups = parameter_groups(model, stage.train, lr=stage.lr, weight_decay=0.0)
        config = zero(3, BF16, SUMMED, **live)
        merged = merge_ds_config(config, micro_batch=ROWS, accumulation=1, world_size=world.size, clip=1.0)
        engine = initialize(model, groups, merged, lr=stage.lr, betas=stage.betas)
        whole: list[int] = []

        def look(*_: Any, model: torch.nn.Module = model, whole: list[int] = whole) -> None:
            there = (p for p in model.parameters() if p.ds_status != ZeroParamStatus.NOT_AVAILABLE)
            whole.append(sum(p.ds_numel for p in there))

        for module in model.modules():
            module.register_forward_pre_hook(look)
            module.register_forward_hook(look)
        for step in range(2):
            engine.set_gradient_accumulation_boundary(True)
            engine.backward(engine(batch_of(case, step, world.rank, 0)))
            engine.step()
        engine.destroy()
        found.append(max(whole))
    return found


@pytest.mark.slow
def test_no_more_weights_are_gathered_than_planned():
    keys = [
        {"stage3_max_reuse_distance": 8000},
        {"stage3_prefetch_bucket_size": 3000, "stage3_max_live_parameters": 4000},
        {"stage3_prefetch_bucket_size": 3000, "stage3_max_live_parameters": 10_000},
        {"stage3_prefetch_bucket_size": 3000},
    ]
    recipe, stage = recipe_of(TRAINS["most"], 2)
    weights = shape_of(recipe, stage).weights
    for real, live in zip(on_ranks(gathered, keys, ranks=2)[0], keys, strict=True):
        page = Page.model_validate(zero(3, BF16, SUMMED, **live))
        most = memory(weights, page, 2, 0, 0, 0, Assumed()).gathered_weights
        assert 0.75 * most < 2 * real <= most, live


def test_a_rank_holds_less_the_further_zero_goes_and_the_more_ranks_there_are():
    recipe, stage = recipe_of(TRAINS["most"], 1)
    weights = shape_of(recipe, stage).weights

    def total(name: str, ranks: int) -> int:
        return memory(weights, Page.model_validate(CASES[name]), ranks, 0, 0, 0, Assumed()).total

    for ranks in (2, 8, 64):
        assert total("1", ranks) > total("2", ranks) > total("3", ranks)
        assert total("3 bf16", 2 * ranks) < total("3 bf16", ranks)
    # Stage 1 has a master copy that plain data parallelism in float32 does without: few ranks do not pay
    # for it.
    assert total("1", 2) > total("0", 2)
    assert total("1", 8) < total("0", 8)


def test_parts_sum_to_the_total():
    recipe, stage = recipe_of(TRAINS["adapters"], 1)
    weights = shape_of(recipe, stage).weights
    for config in CASES.values():
        found = memory(weights, Page.model_validate(config), 4, 1000, 200, 30, Assumed())
        assert sum(found.parts().values()) == found.total
