"""Seconds of a step: computation, communication that it does not hide, and the update in the host's memory.

A model, not a measurement. Communication after ZeRO (arXiv 1910.02054, section 7): stage 3 moves three
times the parameters of a micro-batch, two gathers and a reduction, of which only what is trained takes part
in the last.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.engine.ds_keys import Page
from trainer.planning.hardware import GB, Assumed, Cluster
from trainer.planning.memory import BYTES, Weights, states
from trainer.planning.work import Work


@dataclass(frozen=True)
class Traffic:
    """Bytes of a step, whole tensors. `gathered`, `reduced`: over all ranks; `near`: gathered within a
    node, of hpZ's copy; `host`: over each GPU's link to its host. `calls`: collectives."""

    gathered: float
    near: float
    reduced: float
    host: float
    calls: int


@dataclass(frozen=True)
class Step:
    """Seconds. `exposed`: the part of `communication` that no computation hides; `host`: of the update
    there."""

    compute: float
    communication: float
    exposed: float
    host: float
    mfu: float

    @property
    def total(self) -> float:
        return self.compute + self.exposed + self.host

    @property
    def compute_share(self) -> float:
        return self.compute / self.total

    @property
    def communication_share(self) -> float:
        return self.exposed / self.total


def traffic_of(
    weights: Weights, passes: Mapping[int, int], page: Page, accumulation: int, ranks: int
) -> Traffic:
    """`passes`: how often weights are gathered in a micro-batch -> elements of such weights: once where no
    graph leads through them, else twice."""
    zero, w = page.zero_optimization, BYTES[page.precision]
    trained = sum(weights.trained)
    reduced: float = BYTES[page.communication_data_type or page.precision] * trained
    if zero.zero_quantized_gradients:
        reduced = trained / 2
    host = _host(weights, page, ranks)
    if zero.stage < 3:
        # Gradients: of each micro-batch where they are kept in parts, else once; then the new weights.
        times = accumulation if zero.stage == 2 else 1
        bucket = zero.reduce_bucket_size
        gathered = float(w * trained) if zero.stage else float(reduced)  # the second half of an all-reduce
        return Traffic(gathered, 0.0, times * reduced, host, 2 * times * -(-trained // bucket))
    size = 1 if zero.zero_quantized_weights else w
    first = size * sum(passes.values())
    second = size * sum(n * (times - 1) for times, n in passes.items())
    near = second if zero.zero_hpz_partition_size > 1 else 0
    fetched = max(1, zero.stage3_prefetch_bucket_size)
    calls = -(-sum(n * times for times, n in passes.items()) // fetched) + -(
        -trained // zero.reduce_bucket_size
    )
    if zero.offload_param.device != "none":
        host += accumulation * (first + second) / ranks
    return Traffic(
        gathered=accumulation * (first + second - near),
        near=accumulation * near,
        reduced=accumulation * reduced,
        host=host,
        calls=accumulation * calls,
    )


def step_of(
    work: Work, traffic: Traffic, weights: Weights, page: Page, cluster: Cluster, assumed: Assumed
) -> Step:
    """Of all ranks of `cluster`."""
    ranks, peak = cluster.ranks, cluster.gpu.flops
    if page.precision == "fp32":
        peak *= assumed.float32
    attained = assumed.attained
    compute = (attained.seconds(work.flops, peak) + attained.seconds(work.again, peak)) / ranks
    gathers = _collective(traffic.gathered, cluster, assumed) + _within(traffic.near, cluster, assumed)
    reductions = _collective(traffic.reduced, cluster, assumed)
    latency = traffic.calls * assumed.latency_s * (ranks - 1).bit_length()
    overlapped = page.zero_optimization.overlap_comm is not False
    hidden = gathers + latency + (reductions if overlapped else 0.0)
    exposed = max(0.0, hidden - assumed.overlap * compute) + (0.0 if overlapped else reductions)
    host = traffic.host / (assumed.host_link * GB) + _host_update(weights, page, ranks, assumed)
    total = compute + exposed + host
    return Step(
        compute=compute,
        communication=gathers + reductions + latency,
        exposed=exposed,
        host=host,
        mfu=work.flops.total / (cluster.gpu.flops * ranks * total),
    )


def _collective(nbytes: float, cluster: Cluster, assumed: Assumed) -> float:
    """Every rank gets, or adds up, tensors of so many bytes: through its own links, and through its node's
    cards what comes from other nodes. The slower of the two counts."""
    inside = nbytes * (cluster.ranks - 1) / cluster.ranks / (cluster.gpu.nvlink * GB)
    between = nbytes * (cluster.nodes - 1) / cluster.nodes / (cluster.network * GB / 8)
    return max(inside, between) / assumed.links


def _within(nbytes: float, cluster: Cluster, assumed: Assumed) -> float:
    return nbytes * (cluster.per_node - 1) / cluster.per_node / (cluster.gpu.nvlink * GB) / assumed.links


def _host(weights: Weights, page: Page, ranks: int) -> float:
    """Gradients there, new weights back."""
    if page.zero_optimization.offload_optimizer.device == "none":
        return 0.0
    return (4 + BYTES[page.precision]) * sum(weights.trained) / ranks


def _host_update(weights: Weights, page: Page, ranks: int, assumed: Assumed) -> float:
    """AdamW in the host's memory reads and writes its states and reads the gradients."""
    _, host = states(weights, page, ranks)
    return (2 * host.optimizer + host.gradients) / (assumed.host_memory * GB)
