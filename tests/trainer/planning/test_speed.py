"""Times: beside runs whose time was published, and beside what can be said by hand."""

from dataclasses import replace

import pytest

from documentation import text_of
from published_runs import (
    IDEFICS3_CLUSTER,
    IDEFICS3_DAYS,
    LLAVA_CLUSTER,
    LLAVA_DAYS,
    idefics3,
    llava_onevision,
)
from trainer.config import load_recipe
from trainer.engine.ds_keys import Page
from trainer.planning.hardware import PUBLISHED, Assumed, Attained, Cluster, gpu_named
from trainer.planning.memory import Weights, states
from trainer.planning.plan import Asked, page_of, plan_of
from trainer.planning.speed import step_of, traffic_of

H100 = Cluster(gpu_named("h100"), nodes=1, per_node=8, network=3200)
BF16 = {"bf16": {"enabled": True}, "communication_data_type": "bf16"}
PSI = 10**9
ALL = Weights(trained=(PSI,), frozen=(), largest=PSI)


def page(stage: int, **keys: object) -> Page:
    return Page.model_validate(BF16 | {"zero_optimization": {"stage": stage, **keys}})


def test_the_model_is_as_far_from_published_runs_as_the_documentation_says():
    runs = [
        (llava_onevision(), LLAVA_CLUSTER, LLAVA_DAYS),
        (idefics3(), IDEFICS3_CLUSTER, IDEFICS3_DAYS),
    ]
    ratios = [days / plan_of(recipe, Asked(cluster)).days for recipe, cluster, days in runs]
    assert ratios == pytest.approx(PUBLISHED, rel=0.04)
    quick, tardy = PUBLISHED
    assert f"{quick:g} and {tardy:g} times" in text_of("cluster.md")


def test_the_published_run_of_idefics3_has_the_positions_that_its_paper_says():
    recipe = idefics3()
    positions = sum(s.steps * s.global_batch * s.sequence_length for s in recipe.stages)
    assert sum(s.steps for s in recipe.stages) == 10_500
    assert positions == pytest.approx(107.5e9, rel=0.001)
    assert positions / (256 * 5 * 86_400) == pytest.approx(970, rel=0.01)  # a second and GPU


def test_a_step_moves_what_the_zero_paper_says():
    """Section 7: 2 times the parameters at stages 1 and 2, 3 times at stage 3."""
    for stage, times in ((1, 2), (2, 2), (3, 3)):
        traffic = traffic_of(ALL, {2: PSI}, page(stage), accumulation=1, ranks=64)
        assert traffic.gathered + traffic.near + traffic.reduced == times * 2 * PSI


def test_stage_3_moves_it_for_each_micro_batch_and_stage_1_once_a_step():
    def moved(stage: int, accumulation: int) -> float:
        traffic = traffic_of(ALL, {2: PSI}, page(stage), accumulation, ranks=64)
        return traffic.gathered + traffic.reduced

    assert moved(3, 4) == 4 * moved(3, 1)
    assert moved(1, 4) == moved(1, 1)


def test_frozen_weights_are_gathered_and_never_reduced():
    half = Weights(trained=(PSI // 2,), frozen=(PSI // 2,), largest=PSI // 2)
    traffic = traffic_of(half, {1: PSI // 2, 2: PSI // 2}, page(3), accumulation=1, ranks=8)
    assert traffic.gathered == 2 * PSI * 1.5
    assert traffic.reduced == 2 * PSI / 2


def test_hpz_gathers_the_second_time_within_a_node_for_a_copy_of_an_eighth():
    whole, split = page(3), page(3, zero_hpz_partition_size=8)
    plain, near = (traffic_of(ALL, {2: PSI}, p, accumulation=1, ranks=64) for p in (whole, split))
    assert near.gathered == near.near == plain.gathered / 2
    assert states(ALL, split, 64)[0].second_copy == 2 * PSI // 8


def test_offload_empties_the_gpu_of_the_optimizer_and_costs_time_on_the_host():
    away = page(3, offload_optimizer={"device": "cpu"})
    (here, _), (gone, host) = (states(ALL, p, 64) for p in (page(3), away))
    assert here.optimizer > 0
    assert gone.optimizer == gone.gradients == 0
    assert host.optimizer == here.optimizer
    (plan,) = plan_of(llava_onevision(), Asked(LLAVA_CLUSTER)).stages
    steps = [
        step_of(plan.work, traffic_of(ALL, {2: PSI}, p, 1, 8), ALL, p, H100, Assumed())
        for p in (page(3), away)
    ]
    assert steps[0].host == 0 < steps[1].host


def test_links_are_as_fast_as_the_slower_of_nvlink_and_the_nodes_cards():
    """By hand: 2 nodes of 8; 6 GB reach each rank over NVLink, a half of them through its node's cards."""
    traffic = traffic_of(ALL, {2: PSI}, page(3), accumulation=1, ranks=16)
    (plan,) = plan_of(llava_onevision(), Asked(LLAVA_CLUSTER)).stages
    assumed = Assumed(links=1.0, latency_s=0.0)

    def seconds(network: float) -> float:
        cluster = replace(H100, nodes=2, network=network)
        return step_of(plan.work, traffic, ALL, page(3), cluster, assumed).communication

    assert seconds(3200) == pytest.approx(6 * 15 / 16 / 450)
    assert seconds(100) == pytest.approx(6 * 0.5 / (100 / 8))


def test_a_step_is_never_shorter_than_its_parts_and_one_gpu_waits_for_nobody():
    recipe = load_recipe("align-900m")
    for ranks in (1, 4):
        for s in plan_of(recipe, Asked(H100.of(ranks))).stages:
            assert s.step.total == s.step.compute + s.step.exposed + s.step.host
            assert 0 <= s.step.exposed <= s.step.communication
            assert (s.step.communication == 0) == (ranks == 1)
            assert s.step.mfu < max(vars(Attained()).values())


def test_work_does_not_depend_on_the_ranks_and_communication_takes_more_of_it_the_more_there_are():
    slow = Cluster(gpu_named("h100"), nodes=1, per_node=8, network=100)
    plans = [plan_of(llava_onevision(), Asked(slow.of(n))) for n in (8, 64, 512)]
    assert len({p.stages[0].work.flops.total for p in plans}) == 1
    rows = plans[0].scaling
    assert [r.ranks for r in rows if not r.refused] == [2**n for n in range(11)]
    shares = [r.communication_s / r.compute_s for r in rows]
    assert shares == sorted(shares)
    assert shares[0] == 0 < shares[1]
    assert plans[0].dominated_from == next(r.ranks for r in rows if r.communication_s > r.compute_s)


def test_recomputed_layers_cost_time_and_are_no_progress():
    on, off = (
        plan_of(load_recipe("align-900m", [f"defaults.activation_checkpointing={x}"]), Asked(H100.of(4)))
        for x in ("true", "false")
    )
    for kept, made in zip(off.stages, on.stages, strict=True):
        assert kept.work.flops == made.work.flops
        assert kept.work.again.total < made.work.again.total
        assert kept.step.mfu > made.step.mfu
        assert kept.memory.activations > 2 * made.memory.activations


def test_float32_is_slow():
    assert page_of("zero0", 4).precision == "fp32"
    (stage,) = plan_of(llava_onevision(), Asked(LLAVA_CLUSTER)).stages
    (slow,) = plan_of(llava_onevision(), Asked(LLAVA_CLUSTER, ds_config="zero0")).stages
    assert slow.step.compute == pytest.approx(16 * stage.step.compute)
