"""What would be better: other settings planned as this one was, and told where they are."""

from collections.abc import Iterator
from dataclasses import dataclass

from data_pipeline.errors import ConfigError
from trainer.planning.hardware import GIB
from trainer.planning.plan import Asked, Plan, StagePlan, changed, page_of, planned

CONFIGS = (
    "zero1",
    "zero2",
    "zero3-large",
    "zero3-hpz",
    "zero2-offload",
    "zero3-offload",
    "zero3-bf16-states",
)
"""Of ds_configs/: those in bf16 that train to the same losses, and the one that nearly does."""
_WORTH = 0.03
"""Share of a step's time below which two settings count as equal: the model is no better than that."""


@dataclass(frozen=True)
class Advice:
    """`setting`: as it is written in the recipe; times in seconds a step, memory in bytes a GPU."""

    stage: str
    setting: str
    why: str
    step_s: tuple[float, float]
    memory: tuple[int, int]

    def __str__(self) -> str:
        (was, now), (had, has) = self.step_s, self.memory
        return (
            f"{self.stage}: {self.setting}: {self.why}. Step {was:.3g} s -> {now:.3g} s, "
            f"memory {had / GIB:.1f} -> {has / GIB:.1f} GiB"
        )


def advice(plan: Plan) -> tuple[Advice, ...]:
    """For each stage, the best of each kind of change that pays."""
    return tuple(a for stage in plan.stages for a in _for_stage(stage, plan.asked))


def _for_stage(plan: StagePlan, asked: Asked) -> Iterator[Advice]:
    others = [(f"ds_config: {name}", found) for name, found in _configs(plan, asked)]
    rows = [(f"micro_batch: {p.stage.micro_batch}", p) for p in _micro_batches(plan, asked)]
    again = plan.stage.activation_checkpointing is False
    other = planned(changed(plan.shape, activation_checkpointing=again), plan.page, asked, plan.pictures)
    kept = [(f"activation_checkpointing: {str(again).lower()}", other)]
    for candidates in (others, rows, kept):
        better = [(setting, found) for setting, found in candidates if _pays(plan, found)]
        if better:
            least = min(found.step.total for _, found in better)
            yield _told(plan, *next(b for b in better if b[1].step.total <= (1 + _WORTH) * least))
    if plan.margin >= 0 and plan.cluster.gpu.memory < plan.fullest.total:
        yield from _bound(plan, asked)


def _pays(plan: StagePlan, other: StagePlan) -> bool:
    if other.margin < 0:
        return False
    return plan.margin < 0 or other.step.total < (1 - _WORTH) * plan.step.total


def _told(plan: StagePlan, setting: str, found: StagePlan) -> Advice:
    if plan.margin < 0:
        why = "it fits then"
    elif found.step.exposed + found.step.host < plan.step.exposed + plan.step.host:
        why = "less waiting for other GPUs and the host"
    else:
        why = "less is computed twice"
    return Advice(
        stage=plan.stage.name,
        setting=setting,
        why=why,
        step_s=(plan.step.total, found.step.total),
        memory=(plan.memory.total, found.memory.total),
    )


def _configs(plan: StagePlan, asked: Asked) -> Iterator[tuple[str, StagePlan]]:
    for name in CONFIGS:
        try:
            page = page_of(name, asked.cluster.ranks)
        except ConfigError:  # hpZ on a number of ranks that it does not divide
            continue
        if page != plan.page:
            yield name, planned(plan.shape, page, asked, plan.pictures)


def _micro_batches(plan: StagePlan, asked: Asked) -> Iterator[StagePlan]:
    """Any that divides the global batch over the ranks; the largest first, which wins among equals."""
    share = plan.stage.global_batch // asked.cluster.ranks
    for rows in range(share, 0, -1):
        if share % rows == 0 and rows != plan.stage.micro_batch:
            yield planned(changed(plan.shape, micro_batch=rows), plan.page, asked, plan.pictures)


def _bound(plan: StagePlan, asked: Asked) -> Iterator[Advice]:
    """The most pictures of a row that fit, where the recipe allows more."""

    def nbytes(images: int) -> int:
        """Of a GPU whose rows all hold so many."""
        return plan.shape.memory(plan.page, plan.cluster.ranks, plan.pictures, images, asked.assumed).total

    fit = [n for n in range(1, plan.pictures.fullest) if nbytes(n) <= plan.cluster.gpu.memory]
    if fit:
        yield Advice(
            stage=plan.stage.name,
            setting=f"images_per_row: {fit[-1]}",
            why=f"a row may hold {plan.pictures.fullest} pictures, which does not fit",
            step_s=(plan.step.total, plan.step.total),
            memory=(plan.fullest.total, nbytes(fit[-1])),
        )
