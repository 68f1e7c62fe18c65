"""The three masks on a GPU: FlexAttention's block masks against SDPA's dense ones, forward and backward.

python tests/benchmarks/gpu_masks.py [--lengths 2048 8192] [--out FILE]

Heads of Mistral-7B (32 of 128, 8 for keys), bf16, packed rows of drawn documents with images and prompts.
First equality with float64 attention at a length that is no multiple of a block, in output and gradients;
then times and peak memory as ratios to SDPA, the time to make each mask, and how often anything was compiled
after the first batches (0 is the goal). Without a GPU it checks the forward pass on the CPU, and says so.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from data_pipeline.batch import IGNORE, PAD_DOCUMENT
from trainer.models.attention import attend_under_mask
from trainer.models.masks import MaskKind, allowed, block_mask, dense_mask, full_blocks

HEADS, KEY_HEADS, WIDTH, IMAGE_TOKENS = 32, 8, 128, 64
KINDS: tuple[MaskKind, ...] = ("causal", "image_full", "prefix_full")
BATCHES = 8


def packed(length: int, seed: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """document_ids, image_ids, labels int64[1, length]: an image, a prompt, an answer, again and again."""
    draw = torch.Generator().manual_seed(seed)
    documents = torch.full((length,), PAD_DOCUMENT)
    images, labels = torch.zeros(length, dtype=torch.int64), torch.full((length,), IGNORE)
    at, number = 0, 0
    while True:
        prompt, answer = torch.randint(8, 200, (2,), generator=draw).tolist()
        end = at + IMAGE_TOKENS + prompt + answer
        if end > length:
            break
        number += 1
        documents[at:end] = number
        images[at : at + IMAGE_TOKENS] = number
        labels[end - answer - 1 : end - 1] = 1
        at = end
    return tuple(t[None].to(device) for t in (documents, images, labels))


class Grouped(torch.nn.Module):
    num_key_value_groups = HEADS // KEY_HEADS


def tensors(length: int, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    heads = (HEADS, KEY_HEADS, KEY_HEADS)
    drawn = [torch.randn(1, h, length, WIDTH, device=device, dtype=dtype) for h in heads]
    # FlexAttention has no backward pass on the CPU.
    return [t.requires_grad_(device == "cuda") for t in drawn]


def predicate(kind: MaskKind, length: int, seed: int, device: str):
    documents, images, labels = packed(length, seed, device)
    return allowed(documents, full_blocks(kind, images, labels))


def check(kind: MaskKind, device: str, length: int) -> dict[str, float]:
    """Largest difference to float64 attention, relative to its norm, of output and gradients."""
    see = predicate(kind, length, 1, device)
    dense = dense_mask(see, 1, length, device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    inputs = tensors(length, device, dtype)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    want, _ = attend_under_mask(Grouped(), *exact, dense)
    out = {}
    for name, mask in (("flex", block_mask(see, 1, length, device)), ("sdpa", dense)):
        got, _ = attend_under_mask(Grouped(), *inputs, mask)
        pairs = [(got, want)]
        if device == "cuda":
            weigh = torch.randn_like(got)
            grads = torch.autograd.grad(got, inputs, weigh)
            pairs += zip(
                grads, torch.autograd.grad(want, exact, weigh.double(), retain_graph=True), strict=True
            )
        out[name] = max(float((g.double() - w).norm() / w.norm()) for g, w in pairs)
        assert out[name] < (2e-2 if device == "cuda" else 1e-5), (kind, name, out[name])
    return out


def timed(kind: MaskKind, length: int, way: str) -> dict[str, float]:
    """Milliseconds of mask and of one layer's forward and backward, medians over batches; peak MiB."""
    make = block_mask if way == "flex" else dense_mask
    inputs = tensors(length, "cuda", torch.bfloat16)
    masks, layers = [], []
    compiled = 0
    for seed in range(BATCHES + 2):
        see = predicate(kind, length, seed, "cuda")
        if seed == 2:  # the first two warm up
            compiled = counters["stats"]["unique_graphs"]
            torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        began = time.perf_counter()
        mask = make(see, 1, length, "cuda")
        torch.cuda.synchronize()
        made = time.perf_counter()
        attend_under_mask(Grouped(), *inputs, mask)[0].sum().backward()
        torch.cuda.synchronize()
        if seed >= 2:
            masks.append(made - began)
            layers.append(time.perf_counter() - made)
    return {
        "mask_ms": 1e3 * sorted(masks)[BATCHES // 2],
        "layer_ms": 1e3 * sorted(layers)[BATCHES // 2],
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20,
        "compiled_again": counters["stats"]["unique_graphs"] - compiled,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "masks": {}}
    for kind in KINDS:
        found = report["masks"][kind] = {"error": check(kind, device, 1000 if device == "cuda" else 700)}
        flex, sdpa = found["error"]["flex"], found["error"]["sdpa"]
        print(f"{kind:12} relative error to float64: flex {flex:.1e}, sdpa {sdpa:.1e}")
        for length in args.lengths if device == "cuda" else ():
            flex, sdpa = (timed(kind, length, way) for way in ("flex", "sdpa"))
            found[str(length)] = {"flex": flex, "sdpa": sdpa}
            print(
                f"{kind:12} {length:6}  layer {flex['layer_ms']:.2f} ms, SDPA {sdpa['layer_ms']:.2f} "
                f"({sdpa['layer_ms'] / flex['layer_ms']:.2f} times as fast)  mask {flex['mask_ms']:.2f} ms, "
                f"dense {sdpa['mask_ms']:.2f}  peak {flex['peak_mib'] / sdpa['peak_mib']:.2f} of SDPA's  "
                f"compiled again {flex['compiled_again']}"
            )
    if device == "cpu":
        print("no GPU here: nothing was timed")
    if args.out:
        args.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
