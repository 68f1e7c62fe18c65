"""Peak memory and time of the loss at a vocabulary of 32k, forward and backward: ratios to full logits.

python tests/benchmarks/bench_loss.py [--tokens N] [--out FILE]

Each way runs in a process of its own, for the peak of a process never falls. On CUDA the allocator's peak.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from torch.nn import functional as F

from data_pipeline.batch import IGNORE
from trainer.models.loss import CHUNK, target_loss, token_loss

WIDTH, VOCABULARY, ROUNDS = 256, 32_000, 3


RETURNED = {"MALLOC_MMAP_THRESHOLD_": "1000000"}
"""glibc keeps what is freed below a threshold that it moves itself; so the peak would count it twice."""


def full(hidden, labels, head):
    """What transformers' causal LMs do: logits of every position, then float32, then the loss."""
    return F.cross_entropy(
        head(hidden).float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum"
    )


def targets_at_once(hidden, labels, head):
    """Target positions only, in one piece."""
    at = (labels.flatten() != IGNORE).nonzero().squeeze(1)
    return token_loss(head(hidden.flatten(0, 1)[at]), labels.flatten()[at])[0]


def chunked(hidden, labels, head):
    return target_loss(hidden, labels, head)[0]


WAYS = {"full": full, "targets at once": targets_at_once, "chunked": chunked}


def peak_rss() -> int:
    """Bytes; Linux's own mark of the process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def one(way: str, tokens: int, share: float) -> dict[str, float]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False, device=device, dtype=dtype)
    hidden = torch.randn(1, tokens, WIDTH, device=device, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (1, tokens), device=device)
    labels[torch.rand(1, tokens, device=device) > share] = IGNORE
    WAYS[way](hidden[:, :8], labels[:, :8], head).backward()  # whatever is imported at the first call
    target_loss(hidden[:, :8], labels[:, :8], head, 4)[0].backward()
    head.weight.grad, hidden.grad = torch.zeros_like(head.weight), torch.zeros_like(hidden)
    before = psutil.Process().memory_info().rss
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    times, total = [], torch.zeros(())
    for _ in range(ROUNDS):
        began = time.process_time() if device == "cpu" else time.perf_counter()
        total = WAYS[way](hidden, labels, head)
        total.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append((time.process_time() if device == "cpu" else time.perf_counter()) - began)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_rss()
    return {"peak_mib": (peak - before) / 2**20, "seconds": min(times), "loss": float(total.detach())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "SHARE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one[0], args.tokens, float(args.one[1]))))
        return
    report = {"tokens": args.tokens, "vocabulary": VOCABULARY, "width": WIDTH, "chunk": CHUNK, "targets": {}}
    for share in (1.0, 0.25):
        found = {}
        for way in WAYS:
            command = [sys.executable, __file__, "--tokens", str(args.tokens), "--one", way, str(share)]
            done = subprocess.run(command, check=True, capture_output=True, env=os.environ | RETURNED)
            found[way] = json.loads(done.stdout)
        base = found["full"]
        for way, f in found.items():
            assert abs(f["loss"] / base["loss"] - 1) < 1e-3, (way, f, base)
            f["peak_ratio"] = f["peak_mib"] / base["peak_mib"]
            f["time_ratio"] = f["seconds"] / base["seconds"]
            print(
                f"{share:5.0%} targets  {way:16} {f['peak_mib']:8.0f} MiB ({f['peak_ratio']:.2f})  "
                f"{f['seconds']:6.2f} s ({f['time_ratio']:.2f})"
            )
        report["targets"][str(share)] = found
    if args.out:
        args.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
