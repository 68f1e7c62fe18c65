"""A recipe on a cluster -> what each stage takes and how long; the same on 1 to 1,024 GPUs."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trainer.config import Recipe, Stage
from trainer.engine.ds_config import read_ds_config
from trainer.engine.ds_keys import Page
from trainer.planning.hardware import Assumed, Cluster
from trainer.planning.memory import Memory, checkpoint_bytes, host_memory, on_drive
from trainer.planning.shape import Shape, shape_of
from trainer.planning.speed import Step, Traffic, step_of, traffic_of
from trainer.planning.work import Pictures, Work, pictures_of, work_of

SCALES = tuple(2**n for n in range(11))
DAY_S = 86_400


@dataclass(frozen=True)
class Asked:
    """What the plan is for. `images`, `patches`: of a row and of an image, where the user says them."""

    cluster: Cluster
    assumed: Assumed = field(default_factory=Assumed)
    images: float | None = None
    patches: int | None = None
    ds_config: str | None = None


@dataclass(frozen=True)
class StagePlan:
    """`memory`: with as many pictures as assumed in every row; `fullest`: with the most that rows may
    hold."""

    shape: Shape
    page: Page
    cluster: Cluster
    accumulation: int
    pictures: Pictures
    work: Work
    memory: Memory
    fullest: Memory
    host: dict[str, int]
    drive: int
    traffic: Traffic
    step: Step

    @property
    def stage(self) -> Stage:
        return self.shape.stage

    @property
    def margin(self) -> int:
        """Bytes that are left on a GPU; negative where they do not suffice."""
        return self.cluster.gpu.memory - self.memory.total

    @property
    def days(self) -> float:
        return self.stage.steps * self.step.total / DAY_S

    @property
    def checkpoint(self) -> int:
        """Bytes of one."""
        return checkpoint_bytes(self.shape.weights, self.page)[0]

    @property
    def frozen(self) -> int:
        """Bytes of the frozen weights, which are written once."""
        return checkpoint_bytes(self.shape.weights, self.page)[1]

    @property
    def disk(self) -> int:
        """Bytes when the stage is done."""
        return self.frozen + self.stage.keep_checkpoints * self.checkpoint


@dataclass(frozen=True)
class Scale:
    """All stages on so many GPUs. `refused`: why they cannot run there, and then there are no times."""

    ranks: int
    refused: str | None = None
    step_s: float = 0.0
    compute_s: float = 0.0
    communication_s: float = 0.0
    waits: float = 0.0
    """Share of a step in which communication is all that goes on."""
    days: float = 0.0
    margin: int = 0
    """Bytes left on a GPU, in the stage where that is least."""

    @property
    def gpu_hours(self) -> float:
        return self.days * 24 * self.ranks


@dataclass(frozen=True)
class Plan:
    recipe: Recipe
    asked: Asked
    stages: tuple[StagePlan, ...]
    scaling: tuple[Scale, ...]

    @property
    def days(self) -> float:
        return sum(s.days for s in self.stages)

    @property
    def gpu_hours(self) -> float:
        return self.days * 24 * self.asked.cluster.ranks

    @property
    def disk(self) -> int:
        """Bytes of the whole run at most: a checkpoint is there before the oldest goes."""
        return sum(s.disk for s in self.stages) + max(s.checkpoint for s in self.stages)

    @property
    def fits(self) -> bool:
        return all(s.margin >= 0 for s in self.stages)

    @property
    def dominated_from(self) -> int | None:
        """GPUs from which on a step communicates for longer than it computes; None up to the last one."""
        heavy = (s.ranks for s in self.scaling if not s.refused and s.communication_s > s.compute_s)
        return next(heavy, None)


def plan_of(recipe: Recipe, asked: Asked) -> Plan:
    """Raises ConfigError where the recipe has no shape, or cannot be run on so many ranks."""
    stages: list[StagePlan] = []
    shapes: dict[tuple[object, ...], Shape] = {}
    for stage in recipe.stages:
        page = page_of(asked.ds_config or stage.ds_config, asked.cluster.ranks)
        stage.accumulation(asked.cluster.ranks)
        key = (str(stage.train), stage.longest_edge, stage.shortest_edge)
        if key not in shapes:
            shapes[key] = shape_of(recipe, stage)
        pictures = pictures_of(recipe, stage, asked.images, asked.patches)
        stages.append(planned(replace(shapes[key], stage=stage), page, asked, pictures))
    scaling = tuple(scaled(stages, asked, ranks) for ranks in SCALES)
    return Plan(recipe=recipe, asked=asked, stages=tuple(stages), scaling=scaling)


def page_of(name: str, ranks: int) -> Page:
    """DeepSpeed's configuration of that name. Raises ConfigError as `read_ds_config` does."""
    return Page.model_validate(read_ds_config(name, ranks))


def planned(shape: Shape, page: Page, asked: Asked, pictures: Pictures) -> StagePlan:
    """A stage on the cluster that `asked` names."""
    stage, cluster, assumed, ranks = shape.stage, asked.cluster, asked.assumed, asked.cluster.ranks
    accumulation = stage.accumulation(ranks)
    work = work_of(shape.recipe, stage, pictures)
    traffic = traffic_of(shape.weights, shape.passes, page, accumulation, ranks)
    usual, fullest = (
        shape.memory(page, ranks, pictures, images, assumed) for images in (pictures.row, pictures.fullest)
    )
    return StagePlan(
        shape=shape,
        page=page,
        cluster=cluster,
        accumulation=accumulation,
        pictures=pictures,
        work=work,
        memory=usual,
        fullest=fullest,
        host=host_memory(shape.weights, page, ranks, stage.checkpoint_async and not stage.checkpoint_staging),
        drive=on_drive(shape.weights, page, ranks),
        traffic=traffic,
        step=step_of(work, traffic, shape.weights, page, cluster, assumed),
    )


def scaled(stages: Sequence[StagePlan], asked: Asked, ranks: int) -> Scale:
    """All stages on so many GPUs, each with its own micro-batch, or the largest below it that divides."""
    there = replace(asked, cluster=asked.cluster.of(ranks))
    found = []
    for plan in stages:
        micro_batch = fitting(plan.stage, ranks)
        size = plan.page.zero_optimization.zero_hpz_partition_size
        if micro_batch is None:
            return Scale(
                ranks, refused=f"{plan.stage.name}: global_batch {plan.stage.global_batch} does not divide"
            )
        if ranks % size:
            return Scale(ranks, refused=f"{plan.stage.name}: hpZ needs a multiple of {size}")
        found.append(planned(changed(plan.shape, micro_batch=micro_batch), plan.page, there, plan.pictures))
    steps, seconds = (sum(f(p) for p in found) for f in (_steps, _seconds))
    return Scale(
        ranks=ranks,
        step_s=seconds / steps,
        compute_s=sum(_steps(p) * p.step.compute for p in found) / steps,
        communication_s=sum(_steps(p) * p.step.communication for p in found) / steps,
        waits=sum(_steps(p) * p.step.exposed for p in found) / seconds,
        days=seconds / DAY_S,
        margin=min(p.margin for p in found),
    )


def fitting(stage: Stage, ranks: int) -> int | None:
    """The largest micro-batch, at most the stage's own, with which the global batch divides over the
    ranks."""
    sizes = range(stage.micro_batch, 0, -1)
    return next((n for n in sizes if stage.global_batch % (n * ranks) == 0), None)


def changed(shape: Shape, **keys: Any) -> Shape:
    """The same model in a stage with other keys."""
    return replace(shape, stage=shape.stage.model_copy(update=keys))


def _steps(plan: StagePlan) -> int:
    return plan.stage.steps


def _seconds(plan: StagePlan) -> float:
    return plan.stage.steps * plan.step.total
