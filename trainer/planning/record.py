"""A plan as one JSON object: everything that its page says, in bytes, seconds and counts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer.planning.advice import Advice
from trainer.planning.hardware import GB, PUBLISHED
from trainer.planning.plan import Plan, Scale, StagePlan


@dataclass(frozen=True)
class Prices:
    """What the user says beside the cluster: money of a GPU-hour; Gbit/s of the disk that checkpoints go
    to."""

    gpu_hour: float | None = None
    disk_gbps: float | None = None

    def cost(self, gpu_hours: float) -> float | None:
        return None if self.gpu_hour is None else gpu_hours * self.gpu_hour

    def write_s(self, nbytes: int) -> float | None:
        return None if self.disk_gbps is None else nbytes * 8 / (self.disk_gbps * GB)


def record(plan: Plan, advice: Sequence[Advice], prices: Prices) -> dict[str, Any]:
    """Of plain JSON."""
    cluster = plan.asked.cluster
    return {
        "recipe": plan.recipe.name,
        "backbones": plan.recipe.expected.model_dump(),
        "cluster": {
            "gpu": asdict(cluster.gpu) | {"memory": cluster.gpu.memory, "flops": cluster.gpu.flops},
            "nodes": cluster.nodes,
            "gpus_per_node": cluster.per_node,
            "gpus": cluster.ranks,
            "inter_node_gbps": cluster.network,
        },
        "assumed": asdict(plan.asked.assumed) | {"published_runs_took_times": PUBLISHED},
        "stages": [_stage(stage, prices) for stage in plan.stages],
        "fits": plan.fits,
        "days": plan.days,
        "gpu_hours": plan.gpu_hours,
        "cost": prices.cost(plan.gpu_hours),
        "disk": plan.disk,
        "scaling": [_scale(scale, prices) for scale in plan.scaling],
        "communication_dominates_from": plan.dominated_from,
        "suggestions": [asdict(a) for a in advice],
    }


def _stage(plan: StagePlan, prices: Prices) -> dict[str, Any]:
    stage, zero = plan.stage, plan.page.zero_optimization
    return {
        "stage": stage.name,
        "init_from": stage.init_from,
        "zero_stage": zero.stage,
        "precision": plan.page.precision,
        "parameters": [c.to_json() for c in plan.shape.modules],
        "parameters_without_adapters": plan.shape.plain,
        "steps": stage.steps,
        "global_batch": stage.global_batch,
        "micro_batch": stage.micro_batch,
        "accumulation": plan.accumulation,
        "sequence_length": stage.sequence_length,
        "pictures": asdict(plan.pictures),
        "tokens_per_step": plan.work.tokens,
        "images_per_step": plan.work.images,
        "targets_per_step": plan.work.targets,
        "flops_per_step": asdict(plan.work.flops) | {"total": plan.work.flops.total},
        "flops_done_again": asdict(plan.work.again) | {"total": plan.work.again.total},
        "memory": plan.memory.parts() | {"total": plan.memory.total, "margin": plan.margin},
        "memory_with_fullest_rows": plan.fullest.total,
        "host_memory": plan.host | {"total": sum(plan.host.values())},
        "drive": plan.drive,
        "traffic_per_step": asdict(plan.traffic),
        "step": asdict(plan.step) | {"total": plan.step.total},
        "days": plan.days,
        "checkpoint": plan.checkpoint,
        "frozen_weights": plan.frozen,
        "keep_checkpoints": stage.keep_checkpoints,
        "disk": plan.disk,
        "checkpoint_write_s": prices.write_s(plan.checkpoint),
    }


def _scale(scale: Scale, prices: Prices) -> dict[str, Any]:
    if scale.refused:
        return {"gpus": scale.ranks, "refused": scale.refused}
    own = {k: v for k, v in asdict(scale).items() if k not in ("ranks", "refused")}
    return {
        "gpus": scale.ranks,
        **own,
        "fits": scale.margin >= 0,
        "gpu_hours": scale.gpu_hours,
        "cost": prices.cost(scale.gpu_hours),
    }
