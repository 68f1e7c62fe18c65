"""What this rank holds of an engine's state: a run of elements of each tensor, under any ZeRO stage.

Weights in the precision that the optimizer updates (frozen ones in their own), and the optimizer's moments.
Nothing here depends on the number of ranks but where a run begins and ends.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import nn

from data_pipeline.errors import PreflightError
from trainer.engine.sharding import as_cut
from trainer.engine.swapped import Swapped

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

    `whole`: all ranks hold all of it.
    """

    parameter: nn.Parameter
    start: int
    length: int
    flat: "_Flat"
    offset: int
    whole: bool = False


@dataclass(frozen=True, kw_only=True)
class _Flat:
    """What the optimizer `by` takes for a parameter; `swapped` where it holds no memory between two steps."""

    taken: torch.Tensor
    by: torch.optim.Optimizer
    swapped: Swapped | None = None

    @property
    def state(self) -> dict[str, Any]:
        """The optimizer's own; as its first step would begin it, where there was none yet."""
        state = self.by.state[self.taken]
        if not state:
            if isinstance(self.by, DeepSpeedCPUAdam):
                state["step"] = 0
            else:
                group = self.by.param_groups[0]
                on_device = group["fused"] or group["capturable"]
                device = self.taken.device if on_device else torch.device("cpu")
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            if self.swapped:
                self.swapped.begin(MOMENTS)
            else:
                state |= {moment: torch.zeros_like(self.taken.detach()) for moment in MOMENTS}
        return state

    @cached_property
    def weight(self) -> torch.Tensor:
        return self.swapped.mapped(0) if self.swapped else self.taken.detach()

    @cached_property
    def moments(self) -> dict[str, torch.Tensor]:
        state = self.state
        if self.swapped:
            return {moment: self.swapped.mapped(n) for n, moment in enumerate(MOMENTS, start=1)}
        return {moment: state[moment] for moment in MOMENTS}


def held(engine: deepspeed.DeepSpeedEngine) -> Held:
    """What this rank holds of `engine`. Moments that no step has made yet are made here, as zeros."""
    names = {p: name for name, p in engine.module.named_parameters()}
    rank, ranks = engine.global_rank, engine.world_size
    found: list[Fragment] = []
    trained: set[nn.Parameter] = set()
    for place in _places(engine):
        trained.add(place.parameter)
        for slot, flat in {WEIGHT: place.flat.weight, **place.flat.moments}.items():
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
        yield _trained(place, names[place.parameter], WEIGHT, place.flat.weight, rank, ranks)


def clear(engine: deepspeed.DeepSpeedEngine) -> None:
    """Zeros in all that is trained, also between fragments and behind the last: DeepSpeed aligns them.

    Parameters that ZeRO-3 has gathered are let go (all ranks).
    """
    if isinstance(engine.optimizer, DeepSpeedZeroOptimizer_Stage3):
        engine.optimizer.checkpoint_event_prologue()
    for place in _places(engine):
        for values in (place.flat.weight, *place.flat.moments.values()):
            values.zero_()


def refresh(engine: deepspeed.DeepSpeedEngine) -> None:
    """The weights that the model computes with, made of those that the optimizer updates (all ranks)."""
    optimizer = engine.optimizer
    match optimizer:
        case DeepSpeedZeroOptimizer_Stage3():
            places = list(_places(engine))
            for place in places:
                part = as_cut(place.parameter).ds_tensor.data.view(-1)
                part.copy_(place.flat.weight.narrow(0, place.offset, part.numel()))
            for swapped in {place.flat.swapped for place in places if place.flat.swapped}:
                swapped.flush()
            optimizer.checkpoint_event_epilogue()
        case DeepSpeedZeroOptimizer():
            optimizer.update_lp_params()


def counts(engine: deepspeed.DeepSpeedEngine) -> dict[str, Any]:
    """The few numbers beside the tensors, alike on all ranks: plain JSON."""
    taken = {int(place.flat.state["step"]) for place in _places(engine)}
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
        state = place.flat.state
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
        "offload_param to NVMe": getattr(optimizer, "params_in_nvme_and_cpu", False),
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
            groups = zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True)
            for number, (group, taken) in enumerate(groups):
                swapped = Swapped.of(optimizer, number)
                flat = _Flat(taken=taken, by=optimizer.optimizer, swapped=swapped)
                offset = 0
                for p in group:
                    start, length = _part(p, engine)
                    yield _Place(parameter=p, start=start, length=length, flat=flat, offset=offset)
                    offset += p.partition_numel()
        case DeepSpeedZeroOptimizer():
            for group, taken in zip(
                optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True
            ):
                flat = _Flat(taken=taken, by=optimizer.optimizer)
                for p in group:
                    if p._hp_mapping is not None:
                        ours, theirs = p._hp_mapping.lp_fragment_address, p._hp_mapping.hp_fragment_address
                        yield _Place(
                            parameter=p, start=ours.start, length=ours.numel, flat=flat, offset=theirs.start
                        )
        case _:
            for p in (p for group in optimizer.param_groups for p in group["params"]):
                flat = _Flat(taken=p, by=optimizer)
                yield _Place(parameter=p, start=0, length=p.numel(), flat=flat, offset=0, whole=True)


def _part(parameter: nn.Parameter, engine: deepspeed.DeepSpeedEngine) -> tuple[int, int]:
    """Where this rank's part of a parameter that ZeRO-3 has cut begins, and its length without padding."""
    cut = as_cut(parameter)
    start = cut.partition_numel() * engine.optimizer._get_param_partition_rank(parameter)
    return start, max(0, min(cut.partition_numel(), cut.ds_numel - start))


def _trained(place: _Place, name: str, slot: str, flat: torch.Tensor, rank: int, ranks: int) -> Fragment:
    values = flat.view(-1).narrow(0, place.offset, place.length)
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


def _even(length: int, rank: int, ranks: int) -> slice:
    return slice(length * rank // ranks, length * (rank + 1) // ranks)


def _persistent_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer
