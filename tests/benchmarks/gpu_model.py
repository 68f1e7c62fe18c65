"""Training steps of the 8B recipe on one GPU: MFU, FlexAttention beside SDPA, peak memory.

    python tests/benchmarks/gpu_model.py [--lengths 2048 8192] [--recompute 1] [--peak-tflops F] [--out FILE]
    python tests/benchmarks/gpu_model.py --small        # the same at toy size on the CPU, to try the script

The recipe `idefics2-8b`, stages 1 and 3 as it trains them (adapters on the backbones, its mask), random
weights in bf16, AdamW on what is trained; rows of drawn captions and documents (`training_samples.py`),
pictures of real size in stage 3 and of half their sides in stage 1. MFU: operations that a step needs by
`trainer/models/flops.py`, per second, of the GPU's dense bf16 peak; neither padding nor recomputation counts.
Peak memory includes weights, gradients and AdamW's state. The median of the steps after two to warm up.

The LM's attention: `flex`, as we train, or `sdpa`, torch's under the dense mask of all pairs of a row. The
losses of both must agree to 2e-2 of themselves. Experts have their own benchmark, `gpu_moe.py`.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import torch
import transformers
from torch.optim import AdamW
from training_samples import Look, draw, packed
from transformers import AutoConfig, AutoModelForCausalLM, Idefics2VisionConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from data_pipeline.batch import Batch
from data_pipeline.image_spec import Perceiver
from trainer.config import Stage, load_recipe
from trainer.models.adapters import attach
from trainer.models.autoregressive import NEW_TOKENS, AutoregressiveVLM
from trainer.models.backbones_config import Expected
from trainer.models.build import build_model
from trainer.models.config import Model
from trainer.models.flops import Flops, Load, causal_pairs, training
from trainer.models.freeze import freeze
from trainer.models.loss import target_loss
from trainer.models.masks import dense_mask

STAGES = {"pretrain-384": 2, "instruct": 1}
"""Stages 1 and 3, and by how much sides of pictures are divided in each."""

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}
"""Dense bf16, from NVIDIA's data sheets (SXM)."""

SMALL = Expected(
    vision={
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 112,
        "patch_size": 14,
    },
    language={
        "model_type": "mistral",
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": None,
    },
    layout="idefics2",
)
SMALL_PERCEIVER = Perceiver(latents=4, depth=1, heads=2, kv_heads=1, head_dim=8, projection_width=48)


def build(page: Model, expected: Expected, stage: Stage, device: str, recompute: int) -> AutoregressiveVLM:
    """The stage's model with random weights on the device, in training mode."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    with torch.device(device):
        vision = Idefics2VisionTransformer(Idefics2VisionConfig(**expected.vision))
        language = AutoModelForCausalLM.from_config(AutoConfig.for_model(**expected.language))
        model = build_model(page, vision, language, stage.mask, predicts_new=True)
        attach(model, stage.train)
    torch.set_default_dtype(torch.float32)
    freeze(model, stage.train)
    if recompute:
        model.enable_activation_checkpointing({"vision": recompute, "language": recompute})
    return model.train()


def with_flex(model: AutoregressiveVLM, batch: Batch) -> torch.Tensor:
    return model(batch)


def with_sdpa(model: AutoregressiveVLM, batch: Batch) -> torch.Tensor:
    see = model.see(batch.document_ids, batch.image_ids, batch.labels)
    mask = dense_mask(see, *batch.input_ids.shape, batch.input_ids.device)
    hidden = model.decode(model.embed(batch), mask, batch.positions)
    return target_loss(hidden, batch.labels, model.head)[0]


WAYS: dict[str, Callable[[AutoregressiveVLM, Batch], torch.Tensor]] = {"flex": with_flex, "sdpa": with_sdpa}


def needed(model: AutoregressiveVLM, expected: Expected, stage: Stage, batch: Batch) -> Flops:
    """Operations of a step on this batch; of pictures, texts and pairs that are no padding."""
    lengths = [n for row in batch.document_ids.tolist() for d, n in Counter(row).items() if d]
    load = Load(
        patches=tuple(rows * columns for rows, columns in batch.grids),
        tokens=sum(lengths),
        pairs=causal_pairs(lengths),
        targets=batch.target_tokens,
    )
    return training(model.config, expected.vision, expected.language, load, stage.train)


def run_steps(model, way, batches: Iterator[Batch], steps: int, device: str, needs) -> dict:
    """`needs` of a batch: its operations."""
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    rates, tokens, done = [], [], Counter()
    for step in range(-2, steps):
        batch = next(batches)
        work = needs(batch)
        batch = batch.to(device)
        if step == 0 and device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = clock(device)
        (way(model, batch) / batch.target_tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds = clock(device) - began
        if step >= 0:
            rates.append(work.total / seconds / 1e12)
            tokens.append(int((batch.document_ids > 0).sum()) / seconds)
            done += Counter(vars(work))
    return {
        "tflops": statistics.median(rates),
        "tokens_per_s": statistics.median(tokens),
        "shares": {name: n / sum(done.values()) for name, n in done.items()},
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
    }


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(stage: Stage, page: Model, expected: Expected, look: Look, device: str, args) -> dict:
    """Both ways on the same batches, each with a model of its own: neither pays for what the other left."""
    samples = draw("mixed", args.samples, look)
    batches = packed(samples, args.rows)
    found: dict[str, dict] = {}
    losses = {}
    for name, way in WAYS.items():
        model = build(page, expected, stage, device, args.recompute)
        with torch.no_grad():
            losses[name] = float(way(model.eval(), batches[0].to(device)))

        def needs(batch: Batch, model=model) -> Flops:
            return needed(model, expected, stage, batch)

        found[name] = run_steps(model.train(), way, cycle(batches), args.steps, device, needs)
        del model
        if device == "cuda":
            torch.cuda.empty_cache()
    difference = abs(losses["sdpa"] / losses["flex"] - 1)
    assert difference < 2e-2, f"the losses differ: {losses}"
    return {**found, "flex_over_sdpa": found["flex"]["tflops"] / found["sdpa"]["tflops"], "loss": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--small", action="store_true", help="toy sizes on the CPU")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--recompute", type=int, default=1, help="every n-th layer; 0: none")
    parser.add_argument("--peak-tflops", type=float, help="of this GPU, where it is none of the known ones")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not args.small and not torch.cuda.is_available():
        print("no GPU here: nothing was measured; --small tries the script on the CPU")
        return
    device = "cpu" if args.small else "cuda"
    name = "cpu" if args.small else torch.cuda.get_device_name()
    peak = args.peak_tflops or next((v for k, v in PEAK_TFLOPS.items() if k in name), None)
    recipe = load_recipe("idefics2-8b")
    expected = SMALL if args.small else recipe.backbones.expects
    assert expected is not None
    report = {
        "device": name,
        "peak_tflops": peak,
        "versions": {m.__name__: m.__version__ for m in (torch, transformers)},
        "command": " ".join(["python", *sys.argv]),
        "stages": {},
    }
    for stage in recipe.stages:
        if stage.name not in STAGES:
            continue
        for length in args.lengths:
            vocabulary = expected.language["vocab_size"] + NEW_TOKENS
            look, page = Look(length, vocabulary, smaller=STAGES[stage.name]), recipe.model
            if args.small:
                look = Look(length, vocabulary, SMALL_PERCEIVER.latents, smaller=8)
                page = Model(image=look.image, connector=SMALL_PERCEIVER)
            found = measure(stage, page, expected, look, device, args)
            for way in WAYS:
                found[way]["mfu"] = found[way]["tflops"] / peak if peak else None
                mfu = "no peak" if peak is None else f"MFU {found[way]['mfu']:.1%}"
                print(
                    f"{stage.name:13} {length:6} {way}: {found[way]['tflops']:.3g} TFLOP/s, {mfu}, "
                    f"{found[way]['tokens_per_s']:,.0f} tokens/s, peak {found[way]['peak_gib']} GiB"
                )
            report["stages"].setdefault(stage.name, {})[str(length)] = found
    if args.out:
        args.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
