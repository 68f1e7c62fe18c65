"""Bytes that a GPU and its host hold in training, by part, under DeepSpeed's configuration.

After ZeRO (Rajbhandari et al., arXiv 1910.02054, section 5), with what DeepSpeed really allocates: a master
copy at stages 1 to 3 in any precision, gradients in the type in which they are added up.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

from trainer.engine.ds_keys import Page
from trainer.planning.hardware import Assumed

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_MOMENTS = 2


@dataclass(frozen=True)
class Weights:
    """Elements of each parameter tensor of a stage's model, and of the largest module that is gathered at
    once."""

    trained: tuple[int, ...]
    frozen: tuple[int, ...]
    largest: int

    @property
    def every(self) -> tuple[int, ...]:
        return self.trained + self.frozen


@dataclass(frozen=True)
class _Parts:
    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))

    def parts(self) -> dict[str, int]:
        """Those that there are, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name)}


@dataclass(frozen=True)
class States(_Parts):
    """What stays from step to step, and gradients."""

    weights: int = 0
    second_copy: int = 0
    """hpZ's, within a node."""
    gradients: int = 0
    optimizer: int = 0
    """Master weights and both moments."""


@dataclass(frozen=True)
class Memory(_Parts):
    """Of one GPU when it is fullest: in the backward pass, or where that takes more, in the update."""

    weights: int
    second_copy: int
    gradients: int
    optimizer: int
    activations: int
    layer_at_work: int
    """Activations made again, and gradients, of the layer that the backward pass is at, beyond the room of
    the loss."""
    loss: int
    gathered_weights: int
    """Whole weights of the modules at work, and of those fetched ahead."""
    reduction_buckets: int
    update: int
    """What the update takes beyond the room of the backward pass."""
    cuda_and_nccl: int
    fragmentation: int


def states(weights: Weights, page: Page, ranks: int) -> tuple[States, States]:
    """On the GPU, and in the host's memory for it (the optimizer perhaps on a drive), of one of so many
    ranks."""
    zero, w = page.zero_optimization, BYTES[page.precision]
    stage = zero.stage
    parted = _cut(weights.trained, ranks)
    trained, every = sum(weights.trained), sum(weights.every)
    master = 2 if page.bf16.bf16_master_weights_and_grads else 4
    added = BYTES[page.data_types.grad_accum_dtype or page.precision]
    if stage == 0:
        return States(weights=w * every, gradients=w * trained, optimizer=_MOMENTS * w * trained), States()
    optimizer = master * (1 + _MOMENTS) * parted
    # Stages 1 and 2 let go of a micro-batch's whole gradients only when the next ones are there; what is
    # added up stands beside them: tests/trainer/planning/test_memory_of_ranks.py measures it.
    gradients = added * parted if stage == 3 else w * trained + added * (trained if stage == 1 else parted)
    held = w * (_cut(weights.every, ranks) + _whole(weights, page) if stage == 3 else every)
    second = w * _cut(weights.every, zero.zero_hpz_partition_size) if zero.zero_hpz_partition_size > 1 else 0
    host_weights = host_gradients = host_optimizer = 0
    if zero.offload_optimizer.device != "none":
        host_optimizer, optimizer = optimizer, 0
        if stage == 3:
            # Added up in one buffer, handed to the optimizer in another, in float32.
            host_gradients, gradients = (added + 4) * parted, 0
        else:
            host_gradients, host_weights = 4 * parted, w * parted
            gradients += w * max(weights.trained, default=0)
    if zero.offload_param.device != "none":
        host_weights, held = w * _cut(weights.every, ranks), w * _whole(weights, page)
    return (
        States(weights=held, second_copy=second, gradients=gradients, optimizer=optimizer),
        States(weights=host_weights, gradients=host_gradients, optimizer=host_optimizer),
    )


def memory(
    weights: Weights, page: Page, ranks: int, activations: int, layer: int, loss: int, assumed: Assumed
) -> Memory:
    """Of a GPU among so many ranks, with these activations."""
    held, _ = states(weights, page, ranks)
    gathered, buckets = _gathered(weights, page), _buckets(weights, page)
    update = max(0, _update(weights, page, ranks) - activations - layer - loss - gathered)
    allocated = held.total + activations + layer + loss + gathered + buckets + update
    return Memory(
        **vars(held),
        activations=activations,
        layer_at_work=layer,
        loss=loss,
        gathered_weights=gathered,
        reduction_buckets=buckets,
        update=update,
        cuda_and_nccl=assumed.context,
        fragmentation=round(assumed.fragmentation * allocated),
    )


def host_memory(weights: Weights, page: Page, ranks: int, copies: bool) -> dict[str, int]:
    """Bytes of the host for one GPU, by part; `copies`: checkpoints are copied before they are written, which
    they are not from a drive."""
    _, host = states(weights, page, ranks)
    parts, zero = host.parts(), page.zero_optimization
    if on_drive(weights, page, ranks):
        del parts["optimizer"]
        largest = min(_cut(weights.trained, ranks), zero.sub_group_size)
        parts["swap buffers"] = zero.offload_optimizer.buffer_count * 4 * largest
    elif copies:
        trained, frozen = checkpoint_bytes(weights, page)
        parts["checkpoint copy"] = -(-(trained + frozen) // ranks)
    return parts


def on_drive(weights: Weights, page: Page, ranks: int) -> int:
    """Bytes that one GPU has on its node's drive: the optimizer, where it is offloaded there."""
    _, host = states(weights, page, ranks)
    return host.optimizer if page.zero_optimization.offload_optimizer.device == "nvme" else 0


def checkpoint_bytes(weights: Weights, page: Page) -> tuple[int, int]:
    """Of all ranks: a checkpoint, trained weights with their moments; and the frozen ones, written once."""
    master = 2 if page.bf16.bf16_master_weights_and_grads else 4
    return master * (1 + _MOMENTS) * sum(weights.trained), BYTES[page.precision] * sum(weights.frozen)


def _cut(sizes: Iterable[int], ranks: int) -> int:
    """Elements of the tensors on each rank: DeepSpeed pads each to equal parts."""
    return sum(-(-n // ranks) for n in sizes)


def _whole(weights: Weights, page: Page) -> int:
    """Elements that ZeRO-3 keeps whole on each rank beside the parts: tensors too small to be worth a
    gather."""
    most = page.zero_optimization.stage3_param_persistence_threshold
    return sum(n for n in weights.every if n < most)


def _gathered(weights: Weights, page: Page) -> int:
    """At most: the module at work, with what is fetched ahead of it up to the limit of live parameters, or
    what is used again within the reuse distance at the turn to the backward pass, there and back."""
    zero = page.zero_optimization
    if zero.stage < 3:
        return 0
    ahead = zero.stage3_max_live_parameters if zero.stage3_prefetch_bucket_size else 0
    alive = max(ahead, zero.stage3_max_reuse_distance // 2) + weights.largest
    return BYTES[page.precision] * min(alive, sum(weights.every) - _whole(weights, page))


def _buckets(weights: Weights, page: Page) -> int:
    """In which gradients are reduced; a second one is filled while the first is on its way."""
    zero = page.zero_optimization
    size = BYTES[page.communication_data_type or page.precision]
    count = 1 if zero.overlap_comm is False else 2
    bucket = min(zero.reduce_bucket_size, sum(weights.trained)) if zero.stage < 3 else zero.reduce_bucket_size
    return count * size * bucket


def _update(weights: Weights, page: Page, ranks: int) -> int:
    """Gradients once more, in the precision of the master weights, a part of them at a time."""
    zero = page.zero_optimization
    if zero.stage == 0 or zero.offload_optimizer.device != "none":
        return 0
    parted = _cut(weights.trained, ranks)
    return 4 * (min(parted, zero.sub_group_size) if zero.stage == 3 else parted)
