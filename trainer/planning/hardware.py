"""GPUs as data, and what the model assumes of them: bandwidths, attained shares, reserves."""

from dataclasses import dataclass, field

from data_pipeline.errors import ConfigError, nearest
from trainer.models.flops import Flops
from trainer.observe.peaks import peak_tflops

GIB = 2**30
GB = 1e9


@dataclass(frozen=True)
class Gpu:
    """`memory_gb`: as its data sheet says; `nvlink`: GB/s in one direction, to the GPUs of its node;
    `network`: Gbit/s of the network card that the maker's own node has for it."""

    device: str
    memory_gb: float
    nvlink: float
    network: float

    @property
    def memory(self) -> int:
        """Bytes that CUDA reports: a hundredth less than the sheet's figure taken as GiB, on those we
        know."""
        return round(self.memory_gb * 0.99 * GIB)

    @property
    def flops(self) -> float:
        """Peak a second, in bf16."""
        peak = peak_tflops(self.device)
        assert peak is not None
        return peak * 1e12


# Data sheets of nvidia.com; network: DGX A100 (eight cards of 200 Gbit/s), DGX H100, H200 and B200 (of 400).
# The sheets give NVLink in both directions together: half of it stands here. PCIe cards: links in pairs
# alone, so what counts among more of them is PCIe.
GPUS = {
    "a100-40gb": Gpu("A100", 40, 300, 200),
    "a100": Gpu("A100", 80, 300, 200),
    "h100": Gpu("H100", 80, 450, 400),
    "h100-nvl": Gpu("H100 NVL", 94, 64, 400),
    "h100-pcie": Gpu("H100 PCIe", 80, 64, 400),
    "h200": Gpu("H200", 141, 450, 400),
    "h200-nvl": Gpu("H200 NVL", 141, 450, 400),
    "b200": Gpu("B200", 180, 900, 400),
    "gb200": Gpu("GB200", 186, 900, 400),
}


def gpu_named(name: str) -> Gpu:
    """Raises ConfigError for a name that is not in GPUS."""
    found = GPUS.get(name.lower())
    if found is None:
        raise ConfigError(f"--gpu {name}: not known{nearest(name.lower(), GPUS)}\n  Known: {', '.join(GPUS)}")
    return found


@dataclass(frozen=True)
class Attained:
    """Share of the peak while a component computes. Assumptions: a published trainer of this size says 0.45
    for all of its step, recomputation included (LLaVA-OneVision-1.5's README); narrow layers attain less."""

    vision: float = 0.35
    connector: float = 0.35
    cross_attention: float = 0.40
    language: float = 0.45
    head: float = 0.45

    @classmethod
    def all(cls, share: float) -> "Attained":
        return cls(**dict.fromkeys(vars(cls()), share))

    def seconds(self, flops: Flops, peak: float) -> float:
        return sum(n / (peak * getattr(self, part)) for part, n in vars(flops).items())


@dataclass(frozen=True)
class Assumed:
    """What no data sheet says."""

    attained: Attained = field(default_factory=Attained)
    float32: float = 1 / 16
    """Of the peak in bf16, that in float32: A100, H100 and H200 (19.5 of 312, 67 of 989) are near it."""
    links: float = 0.8
    """Share of a link's bandwidth that a collective attains."""
    latency_s: float = 15e-6
    """Of a collective, for each doubling of the ranks."""
    overlap: float = 0.5
    """Share of the computation under which communication can hide."""
    host_link: float = 25.0
    """GB/s between a GPU and its host, one direction: PCIe 4 of 16 lanes."""
    host_memory: float = 25.0
    """GB/s of the host's memory for each GPU, where the optimizer runs there."""
    context: int = round(1.5 * GIB)
    """Bytes of the CUDA context, its libraries' workspaces and NCCL's buffers."""
    fragmentation: float = 0.05
    """Of all that torch allocates, lost between its blocks."""


@dataclass(frozen=True)
class Cluster:
    """`nodes` of `per_node` GPUs; `network`: Gbit/s of all cards of a node together."""

    gpu: Gpu
    nodes: int
    per_node: int
    network: float

    @property
    def ranks(self) -> int:
        return self.nodes * self.per_node

    def of(self, ranks: int) -> "Cluster":
        """So many GPUs of such nodes."""
        per_node = min(ranks, self.per_node)
        return Cluster(self.gpu, -(-ranks // per_node), per_node, self.network)


PUBLISHED = (1.2, 7.7)
"""Times as long as this model says two published runs took: LLaVA-OneVision-1.5's mid-training and Idefics3.
tests/inputs/published_runs.py is what is known of them."""
