"""A refused step leaves weights and optimizer bit by bit as they were, under every ZeRO stage."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import nn

from float16 import FP16, needs_fp16
from ranks import on_ranks
from trainer.distributed import all_sum
from trainer.engine.gate import Gate, norms_by_module
from trainer.engine.initialize import initialize

STEPS = 4
POISONED = 3  # from 1; both moments are there by then


SCALING = {"enabled": True, "initial_scale_power": 8, "loss_scale_window": 2, "hysteresis": 1}
"""fp16's loss scale: 256 at first, halved by an overflow, doubled after two good steps."""
SCALED = [1, 2, 3]
OVERFLOWS = (2, 3)
"""Steps, from 1, in which rank 1 alone overflows."""


def config(zero, bf16, accumulation=1, fp16=False):
    return {
        **({"fp16": SCALING} if fp16 else {}),
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": bf16},
        "zero_optimization": {"stage": zero, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def state(engine):
    """All that a step may change, of this rank: weights, their full precision, moments, counts."""
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    tensors = [getattr(p, "ds_tensor", p) for p in engine.module.parameters()]
    tensors += [p for group in optimizer.param_groups for p in group["params"]]
    tensors += [v for of in optimizer.state.values() for v in of.values() if torch.is_tensor(v)]
    return [t.detach().clone() for t in tensors]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def run(world, zero, bf16, poison=1.0, limit=math.inf, accumulation=1, gated=True):
    """What STEPS steps did. Rank 1 multiplies its loss of step POISONED with `poison`; norms of `limit` and
    above are refused."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("one", nn.Linear(6, 4))
    model.add_module("two", nn.Linear(4, 2))
    groups = [{"params": list(model.parameters()), "weight_decay": 0.1}]
    engine = initialize(model, groups, config(zero, bf16, accumulation), lr=0.1, betas=(0.9, 0.95))
    gate = Gate(engine) if gated else None
    changed, norms, modules = [], [], []

    def admit(norm):
        (against,) = all_sum(world, float(not norm < limit))
        if against:
            modules.append(norms_by_module(engine.module.named_parameters()))
        return not against

    for step in range(1, STEPS + 1):
        before = state(engine)
        for micro in range(accumulation):
            torch.manual_seed(100 * step + 10 * micro + world.rank)
            x = torch.randn(2, 6, dtype=torch.bfloat16 if bf16 else torch.float32)
            loss = engine(x).float().square().mean()
            engine.backward(loss * (poison if (step, world.rank) == (POISONED, 1) else 1.0))
            if micro + 1 < accumulation or gate is None:
                engine.step()
        norms.append(gate.step(admit) if gate else float(engine.get_global_grad_norm() or 0.0))
        changed.append(not same(before, state(engine)))
    return Ran(changed, norms, modules, state(engine), engine.global_steps)


def scaled(world, zero):
    """fp16, ten steps: (did it change the weights, its norm, the scale after it, was it put to the gate), and
    how many steps DeepSpeed counts as discarded."""
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    engine = initialize(
        model,
        [{"params": list(model.parameters())}],
        config(zero, False, fp16=True),
        lr=1e-3,
        betas=(0.9, 0.95),
    )
    gate, steps, asked = Gate(engine), [], []

    def admit(norm):
        asked.append(norm)
        return True

    for step in range(1, 11):
        before = state(engine)
        torch.manual_seed(100 * step + world.rank)
        loss = engine(torch.randn(2, 6, dtype=torch.float16)).float().square().mean()
        engine.backward(loss * (1e6 if world.rank == 1 and step in OVERFLOWS else 1.0))
        asked.clear()
        norm = gate.step(admit)
        steps.append((not same(before, state(engine)), norm, engine.optimizer.loss_scale, bool(asked)))
    return steps, engine.skipped_steps


class Ran(NamedTuple):
    changed: list[bool]  # by each step
    norms: list[float]
    modules: list[dict[str, float]]  # of refused steps
    last: list[torch.Tensor]
    steps: int


NOT_FINITE = [(0, False), (1, True), (1, False), (2, True), (2, False), (3, True), (3, False)]
FINITE = [(0, False), (1, True), (2, False), (3, True)]
BARE = [(0, False), (1, True), (3, False)]


def run_all(world):
    """All cases in one start of ranks."""
    runs = {("nan", *c): run(world, *c, poison=math.nan) for c in NOT_FINITE}
    runs |= {("big", *c): run(world, *c, poison=1e5, limit=1e3, accumulation=2) for c in FINITE}
    runs |= {("all", *c): run(world, *c) for c in BARE}
    runs |= {("bare", *c): run(world, *c, gated=False) for c in BARE}
    return {key: tuple(ran) for key, ran in runs.items()}, {
        zero: scaled(world, zero) for zero in SCALED if FP16
    }


@pytest.fixture(scope="module")
def ranks():
    return on_ranks(run_all)


@pytest.fixture(scope="module")
def ran(ranks):
    (first, _), (second, _) = ranks
    return lambda *case: (Ran(*first[case]), Ran(*second[case]))


@pytest.mark.parametrize(("zero", "bf16"), NOT_FINITE)
def test_a_gradient_that_is_not_finite_on_one_rank_changes_nothing_on_any(ran, zero, bf16):
    for rank in ran("nan", zero, bf16):
        assert rank.changed == [True, True, False, True]
        assert rank.norms[POISONED - 1] == math.inf
        assert all(0 < norm < math.inf for norm in rank.norms[:2] + rank.norms[3:])
        assert len(rank.modules) == 1
        assert not any(map(math.isfinite, rank.modules[0].values()))


@pytest.mark.parametrize(("zero", "bf16"), FINITE)
def test_a_finite_norm_is_refused_before_the_update_and_its_modules_add_up_to_it(ran, zero, bf16):
    for rank in ran("big", zero, bf16):
        assert rank.changed == [True, True, False, True]
        assert 1e3 < rank.norms[POISONED - 1] < math.inf
        (by_module,) = rank.modules
        assert set(by_module) == {"one", "two"}
        assert math.hypot(*by_module.values()) == pytest.approx(rank.norms[POISONED - 1], rel=1e-2)
        assert rank.steps == STEPS


@pytest.mark.parametrize(("zero", "bf16"), BARE)
def test_a_gate_that_lets_all_in_is_the_bare_engine(ran, zero, bf16):
    for ours, bare in zip(ran("all", zero, bf16), ran("bare", zero, bf16), strict=True):
        assert same(ours.last, bare.last)
        if zero:  # ZeRO 0 does not tell its norm
            assert ours.norms == pytest.approx(bare.norms, rel=1e-6)


def test_all_ranks_know_the_same_norms(ran):
    for case in [("nan", *c) for c in NOT_FINITE] + [("big", *c) for c in FINITE]:
        first, second = ran(*case)
        assert first.norms == second.norms


@needs_fp16
@pytest.mark.parametrize("zero", SCALED)
def test_an_overflow_on_one_rank_of_fp16_discards_the_step_on_all_and_lowers_the_scale_which_rises_again(
    ranks, zero
):
    (_, first), (_, second) = ranks
    for steps, discarded in (first[zero], second[zero]):
        overflown = [step in OVERFLOWS for step in range(1, 11)]
        assert [not changed for changed, *_ in steps] == overflown
        assert [norm == math.inf for _, norm, *_ in steps] == overflown
        assert [not asked for *_, asked in steps] == overflown  # the guard is not asked: it is no bad step
        scales = [scale for _, _, scale, _ in steps]
        assert scales[:3] == [256, 128, 64]
        assert scales[3:] == sorted(scales[3:])
        assert scales[-1] >= 128
        assert discarded == len(OVERFLOWS)
    assert first[zero] == second[zero]
