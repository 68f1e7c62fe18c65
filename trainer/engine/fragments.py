"""What this rank holds of an engine's state: a run of elements of each tensor, under any ZeRO stage.

Weights in the precision that the optimizer updates (frozen ones in their own), and the optimizer's moments.
Nothing here depends on the number of ranks but where a run begins and ends.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import nn

from data_pipeline.errors import PreflightError

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")

_SCALING = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What fp16's loss scaler remembers."""


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """Elements `start`, `start` + 1, ... of the flattened tensor `name`: `values` is their memory, 1-D.

    `mine` are those of them that this rank saves: other ranks may hold them too.
    """

    slot: str
    name: str
    start: int
    values: torch.Tensor
    mine: slice = field(default_factory=lambda: slice(None))
    frozen: bool = False

    @property
    def key(self) -> str:
        return f"{self.slot}/{self.name}"

    def saved(self) -> tuple[int, torch.Tensor]:
        """Where the part that this rank saves begins in the tensor, and the part."""
        return self.start + (self.mine.start or 0), self.values[self.mine]


@dataclass(frozen=True, kw_only=True)
class Held:
    """All fragments of this rank. `shapes` are those of whole tensors, of all ranks; `tied`: other name ->
    name."""

    fragments: tuple[Fragment, ...]
    shapes: dict[str, tuple[int, ...]]
    tied: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class _Place:
    """`length` elements of `parameter`, from `start` on, stand in `flat` from `offset` on.

    `flat` is what the optimizer `by` takes for a parameter. `whole`: all ranks hold all of it.
    """

    parameter: nn.Parameter
    start: int
    length: int
    flat: torch.Tensor
    offset: int
    by: torch.optim.Optimizer
    whole: bool = False


def held(engine: deepspeed.DeepSpeedEngine) -> Held:
    """What this rank holds of `engine`. Moments that no step has made yet are made here, as zeros."""
    names = {p: name for name, p in engine.module.named_parameters()}
    rank, ranks = engine.global_rank, engine.world_size
    found: list[Fragment] = []
    trained: set[nn.Parameter] = set()
    for place in _places(engine):
        trained.add(place.parameter)
        state = _moments(place)
        for slot, flat in ((WEIGHT, place.flat), *((m, state[m]) for m in MOMENTS)):
            found.append(_trained(place, names[place.parameter], slot, flat, rank, ranks))
    for parameter, name in names.items():
        if not parameter.requires_grad and parameter not in trained:
            found.append(_frozen(name, parameter, engine))
    for name, buffer in _persistent_buffers(engine.module):
        mine = slice(None) if rank == 0 else slice(0, 0)
        found.append(Fragment(slot=WEIGHT, name=name, start=0, values=buffer.view(-1), mine=mine))
    buffers = {name: tuple(b.shape) for name, b in _persistent_buffers(engine.module)}
    everywhere = engine.module.named_parameters(remove_duplicate=False)
    return Held(
        fragments=tuple(f for f in found if f.values.numel()),
        shapes={name: tuple(getattr(p, "ds_shape", p.shape)) for p, name in names.items()} | buffers,
        tied={name: names[p] for name, p in everywhere if name != names[p]},
    )


def trained_weights(engine: deepspeed.DeepSpeedEngine) -> Iterator[Fragment]:
    """Weights alone, of what is trained: between all ranks, each element is `mine` once."""
    names = {p: name for name, p in engine.module.named_parameters()}
    rank, ranks = engine.global_rank, engine.world_size
    for place in _places(engine):
        yield _trained(place, names[place.parameter], WEIGHT, place.flat, rank, ranks)


def clear(engine: deepspeed.DeepSpeedEngine) -> None:
    """Zeros in all that is trained, also between fragments and behind the last: DeepSpeed aligns them.

    Parameters that ZeRO-3 has gathered are let go (all ranks).
    """
    if isinstance(engine.optimizer, DeepSpeedZeroOptimizer_Stage3):
        engine.optimizer.checkpoint_event_prologue()
    for place in _places(engine):
        for flat in (place.flat, *(_moments(place)[m] for m in MOMENTS)):
            flat.detach().zero_()


def refresh(engine: deepspeed.DeepSpeedEngine) -> None:
    """The weights that the model computes with, made of those that the optimizer updates (all ranks)."""
    optimizer = engine.optimizer
    match optimizer:
        case DeepSpeedZeroOptimizer_Stage3():
            for place in _places(engine):
                part = place.parameter.ds_tensor.data.view(-1)
                part.copy_(place.flat.detach().narrow(0, place.offset, part.numel()))
            optimizer.checkpoint_event_epilogue()
        case DeepSpeedZeroOptimizer():
            optimizer.update_lp_params()


def counts(engine: deepspeed.DeepSpeedEngine) -> dict[str, Any]:
    """The few numbers beside the tensors, alike on all ranks: plain JSON."""
    taken = {int(_moments(place)["step"]) for place in _places(engine)}
    assert len(taken) <= 1, f"parameters were updated {sorted(taken)} times"
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {
        "optimizer_step": taken.pop() if taken else 0,
        "global_steps": engine.global_steps,
        "global_samples": engine.global_samples,
        "skipped_steps": engine.skipped_steps,
        "loss_scaler": {key: getattr(scaler, key) for key in _SCALING if hasattr(scaler, key)},
    }


def set_counts(engine: deepspeed.DeepSpeedEngine, given: dict[str, Any]) -> None:
    """Those of `counts`, put back."""
    for place in _places(engine):
        state = _moments(place)
        if torch.is_tensor(state["step"]):
            state["step"].fill_(given["optimizer_step"])
        else:
            state["step"] = given["optimizer_step"]
    for key in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, key, given[key])
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    for key, value in given["loss_scaler"].items():
        if hasattr(scaler, key):
            setattr(scaler, key, value)


def refuse_out_of_reach(engine: deepspeed.DeepSpeedEngine) -> None:
    """Raises PreflightError where a part of the state is kept in a form that no fragment shows."""
    optimizer = engine.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    reasons = {
        "offload to NVMe": getattr(optimizer, "swap_optimizer", False)
        or getattr(optimizer, "params_in_nvme_and_cpu", False),
        "offload_optimizer.ratio below 1": getattr(optimizer, "partial_offload", 1.0) != 1.0,
        "zero_quantized_nontrainable_weights": any(
            hasattr(getattr(p, "ds_tensor", None), "ds_quant_scale") for p in engine.module.parameters()
        ),
        f"the optimizer {type(inner).__name__}": not isinstance(inner, torch.optim.AdamW | DeepSpeedCPUAdam),
    }
    for what, found in reasons.items():
        if found:
            raise PreflightError(f"ds_config: {what}: its state would be in no checkpoint.\n  Leave it out.")


def _places(engine: deepspeed.DeepSpeedEngine) -> Iterator[_Place]:
    optimizer = engine.optimizer
    match optimizer:
        case DeepSpeedZeroOptimizer_Stage3():
            for group, flat in zip(
                optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True
            ):
                offset = 0
                for p in group:
                    start, length = _part(p, engine)
                    yield _Place(
                        parameter=p,
                        start=start,
                        length=length,
                        flat=flat,
                        offset=offset,
                        by=optimizer.optimizer,
                    )
                    offset += p.partition_numel()
        case DeepSpeedZeroOptimizer():
            for group, flat in zip(
                optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True
            ):
                for p in group:
                    if p._hp_mapping is not None:
                        ours, theirs = p._hp_mapping.lp_fragment_address, p._hp_mapping.hp_fragment_address
                        yield _Place(
                            parameter=p,
                            start=ours.start,
                            length=ours.numel,
                            flat=flat,
                            offset=theirs.start,
                            by=optimizer.optimizer,
                        )
        case _:
            for p in (p for group in optimizer.param_groups for p in group["params"]):
                yield _Place(
                    parameter=p, start=0, length=p.numel(), flat=p, offset=0, by=optimizer, whole=True
                )


def _part(parameter: nn.Parameter, engine: deepspeed.DeepSpeedEngine) -> tuple[int, int]:
    """Where this rank's part of a parameter that ZeRO-3 has cut begins, and its length without padding."""
    start = parameter.partition_numel() * engine.optimizer._get_param_partition_rank(parameter)
    return start, max(0, min(parameter.partition_numel(), parameter.ds_numel - start))


def _trained(place: _Place, name: str, slot: str, flat: torch.Tensor, rank: int, ranks: int) -> Fragment:
    values = flat.detach().view(-1).narrow(0, place.offset, place.length)
    mine = _even(place.length, rank, ranks) if place.whole else slice(None)
    return Fragment(slot=slot, name=name, start=place.start, values=values, mine=mine)


def _frozen(name: str, parameter: nn.Parameter, engine: deepspeed.DeepSpeedEngine) -> Fragment:
    if hasattr(parameter, "ds_tensor"):
        start, length = _part(parameter, engine)
        values = parameter.ds_tensor.data.view(-1)[:length]
        return Fragment(slot=WEIGHT, name=name, start=start, values=values, frozen=True)
    values = parameter.data.view(-1)
    mine = _even(values.numel(), engine.global_rank, engine.world_size)
    return Fragment(slot=WEIGHT, name=name, start=0, values=values, mine=mine, frozen=True)


def _moments(place: _Place) -> dict[str, Any]:
    """The optimizer's state of a parameter; as its first step would begin it, where there was none yet."""
    state = place.by.state[place.flat]
    if not state:
        if isinstance(place.by, DeepSpeedCPUAdam):
            state["step"] = 0
        else:
            group = place.by.param_groups[0]
            on_device = group["fused"] or group["capturable"]
            device = place.flat.device if on_device else torch.device("cpu")
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(place.flat.detach())
    return state


def _even(length: int, rank: int, ranks: int) -> slice:
    return slice(length * rank // ranks, length * (rank + 1) // ranks)


def _persistent_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer
