"""Experts on a GPU: torch's grouped product, megablocks, the loop, and a dense FFN of equal active FLOPs.

python tests/benchmarks/gpu_moe.py [--tokens 8192] [--width 4096] [--inner 14336] [--experts 4] [--out FILE]

Mistral-7B's FFN, bf16, top-2, routed evenly and unevenly. First each backend is compared with the loop, in
output and gradients; then forward and backward are timed (medians), with the share of the dense FFN's speed
and peak memory. Without a GPU it says so and ends.
"""

import argparse
import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from moe_layers import FFN, experts_like, routed

TOP_K, ROUNDS, WARM = 2, 10, 3


def gradients(module: torch.nn.Module, x: torch.Tensor, *routing: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(1)
    x = x.detach().clone().requires_grad_()
    out = module(x, *routing)
    return [out, *torch.autograd.grad(out, [x, *module.parameters()], torch.randn_like(out))]


def differs(module: torch.nn.Module, loop: torch.nn.Module, x: torch.Tensor, *routing: torch.Tensor) -> float:
    """The largest relative distance (norms) between the two, over output and gradients."""
    pairs = zip(gradients(module, x, *routing), gradients(loop, x, *routing), strict=True)
    return max(float((a - b).float().norm() / b.float().norm()) for a, b in pairs)


def timed(module: torch.nn.Module, x: torch.Tensor, *routing: torch.Tensor) -> dict[str, float]:
    """Median milliseconds of forward and backward, and peak MiB."""
    seen = []
    for number in range(WARM + ROUNDS):
        if number == WARM:
            torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        began = time.perf_counter()
        gradients(module, x, *routing)
        torch.cuda.synchronize()
        if number >= WARM:
            seen.append(time.perf_counter() - began)
    return {"ms": 1e3 * sorted(seen)[ROUNDS // 2], "peak_mib": torch.cuda.max_memory_allocated() / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for key, value in (("tokens", 8192), ("width", 4096), ("inner", 14336), ("experts", 4)):
        parser.add_argument(f"--{key}", type=int, default=value)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: nothing was timed")
        sys.exit(0)
    backends = ["grouped", "megablocks"] if find_spec("megablocks") else ["grouped"]
    if len(backends) == 1:
        print("megablocks is not installed: grouped, the loop and the dense FFN alone")
    with torch.device("cuda"):
        torch.manual_seed(0)
        ffn = FFN(args.width, args.inner).bfloat16()
        wide = FFN(args.width, TOP_K * args.inner).bfloat16()
        x = torch.randn(args.tokens, args.width, dtype=torch.bfloat16)
    flops = 3 * 6 * args.tokens * TOP_K * args.width * args.inner  # three matrices, forward and backward
    report: dict[str, object] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    dense = timed(wide, x)
    for name, skew in (("even", 0.0), ("skewed", 2.0)):
        gates, chosen = routed(args.tokens, args.experts, TOP_K, skew, "cuda")
        routing = (gates.bfloat16(), chosen)
        loop = experts_like(ffn, args.experts, "loop")
        found = {"dense": dense, "loop": timed(loop, x, *routing)}
        for backend in backends:
            module = experts_like(ffn, args.experts, backend)
            error = differs(module, loop, x, *routing)
            assert error < 2e-2, (backend, error)
            found[backend] = timed(module, x, *routing) | {"error": error}
        report[name] = found
        for way, figures in found.items():
            print(
                f"{name:7} {way:11} {figures['ms']:8.2f} ms  {flops / figures['ms'] / 1e9:6.1f} TFLOP/s  "
                f"{dense['ms'] / figures['ms']:.2f} of the dense FFN's speed  {figures['peak_mib']:,.0f} MiB"
            )
    if args.out:
        args.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
