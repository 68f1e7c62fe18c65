"""Experts on the CPU: the grouped product against the loop, and against a dense FFN of equal active FLOPs.

python tests/benchmarks/bench_moe.py [--tokens 512] [--width 256] [--inner 704] [--experts 4] [--rounds 9]

A dense FFN `top_k` times as wide does as many multiplications as a token's experts do. Forward and backward,
CPU time of one thread, float32; the ways run by turns, and the best round of each counts. Printed are ratios.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from moe_layers import FFN, experts_like, routed

TOP_K = 2


def passes(module: torch.nn.Module, x: torch.Tensor, *routing: torch.Tensor) -> Callable[[], None]:
    weigh = torch.randn_like(x)

    def both() -> None:
        module(x, *routing).backward(weigh)

    return both


def measure(tokens: int, width: int, inner: int, experts: int, skew: float, rounds: int) -> dict[str, float]:
    """Seconds of CPU time of the best round."""
    torch.manual_seed(0)
    x = torch.randn(tokens, width, requires_grad=True)
    ffn, routing = FFN(width, inner), routed(tokens, experts, TOP_K, skew, "cpu")
    ways = {b: passes(experts_like(ffn, experts, b), x, *routing) for b in ("grouped", "loop")}
    ways["dense of equal FLOPs"] = passes(FFN(width, TOP_K * inner), x)
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.process_time()
            way()
            best[name] = min(best[name], time.process_time() - began)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for key, value in (("tokens", 512), ("width", 256), ("inner", 704), ("experts", 4), ("rounds", 9)):
        parser.add_argument(f"--{key}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, skew in (("even", 0.0), ("skewed", 2.0)):
        best = measure(args.tokens, args.width, args.inner, args.experts, skew, args.rounds)
        grouped = best["grouped"]
        print(
            json.dumps(
                {
                    "routing": name,
                    "grouped_ms": round(1e3 * grouped, 2),
                    "loop_over_grouped": round(best["loop"] / grouped, 3),
                    "grouped_over_dense": round(grouped / best["dense of equal FLOPs"], 3),
                }
            )
        )


if __name__ == "__main__":
    main()
