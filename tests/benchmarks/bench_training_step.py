"""A training step on packed rows beside transformers' Idefics2 on padded batches: ratios of speed and memory.

    python tests/benchmarks/bench_training_step.py [--rounds 3] [--samples 24] [--only SET] [--out FILE]

Same weights, same samples (`training_samples.py`: captions with documents; one length for all), fp32, one
thread, forward + backward + AdamW, no recomputation. Ours: two rows of 1,024 tokens a step. transformers:
SDPA, no cache, its own loss with num_items_in_batch, as many samples a step as ours has on average:

    drawn    in the order in which they come: what its Trainer does by default
    grouped  of like length together: transformers' own group_by_length, a stricter peer

At the first weights the summed loss of all samples must agree to 1e-4 of itself, else nothing is said.

Speed: tokens that are no padding per second of CPU time, all in one process, sides taking turns, best of the
rounds; `speed` is ours / theirs. Memory: each side in a process of its own, the peak of its resident memory
over a pass, weights, gradients and AdamW's state included, above the process before the model was made;
`peak` is ours / theirs.
"""

import argparse
import copy
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch
import transformers
from bench_loss import RETURNED, peak_rss
from torch.optim import AdamW
from training_samples import PATCH, Look, Sample, draw, packed, padded
from transformers import AutoModelForCausalLM, Idefics2Config, Idefics2ForConditionalGeneration
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer
from transformers.trainer_pt_utils import get_length_grouped_indices

from data_pipeline.batch import IGNORE
from trainer.models.autoregressive import NEW_TOKENS
from trainer.models.build import build_model
from trainer.models.idefics2 import model_page, places, shapes_of
from trainer.models.weights import load_state

ROWS = 2
SETS = ("mixed", "documents", "uniform")
SIDES = ("ours", "drawn", "grouped")


def idefics2(look: Look) -> Idefics2Config:
    """Idefics2's proportions at a small size: perceiver of 64 latents and depth 3, grouped keys."""
    return Idefics2Config(
        image_token_id=look.vocabulary - 2,
        tie_word_embeddings=False,
        use_cache=False,
        text_config={
            "model_type": "mistral",
            "vocab_size": look.vocabulary,
            "hidden_size": 256,
            "intermediate_size": 896,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "max_position_embeddings": look.length,
            "sliding_window": None,
            "rms_norm_eps": 1e-5,
            "use_cache": False,
            "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 480,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": look.image.longest_edge,
            "patch_size": PATCH,
        },
        perceiver_config={
            "hidden_size": 256,
            "rms_norm_eps": 1e-5,
            "resampler_n_latents": look.latents,
            "resampler_depth": 3,
            "resampler_n_heads": 8,
            "resampler_head_dim": 32,
            "num_key_value_heads": 2,
        },
    )


def theirs(look: Look) -> Idefics2ForConditionalGeneration:
    torch.manual_seed(0)
    model = Idefics2ForConditionalGeneration(idefics2(look))
    torch.nn.init.normal_(model.model.connector.perceiver_resampler.latents)  # they begin equal, at one
    return model.train()


def ours(look: Look, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Our model of that shape, with their weights."""
    config = idefics2(look)
    config.text_config.vocab_size -= NEW_TOKENS
    language = AutoModelForCausalLM.from_config(config.text_config, attn_implementation="sdpa")
    vision = Idefics2VisionTransformer(copy.deepcopy(config.vision_config))
    page = model_page(config, {"longest_edge": look.image.longest_edge, "shortest_edge": PATCH})
    model = build_model(page, vision, language, "causal", predicts_new=True)
    found = places(shapes_of(model)).items()
    load_state(model, {n: state[p.name][p.start : p.stop].clone() for n, p in found}, "theirs")
    return model.train()


class Side:
    """A model, its optimizer, its batches, and the loss of one of them, summed over targets."""

    def __init__(self, name: str, samples: Sequence[Sample], model: torch.nn.Module) -> None:
        self.optimizer = AdamW(model.parameters(), lr=1e-5)
        self.batches = batches(name, samples)
        self.loss: Callable[..., torch.Tensor] = (
            model if name == "ours" else lambda b: model(**b, num_items_in_batch=1).loss
        )

    def first_loss(self) -> float:
        with torch.no_grad():
            return sum(float(self.loss(batch)) for batch in self.batches)

    def one_pass(self) -> None:
        for batch in self.batches:
            labels = batch["labels"] if isinstance(batch, dict) else batch.labels
            (self.loss(batch) / (labels != IGNORE).sum()).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


def batches(name: str, samples: Sequence[Sample]) -> list:
    rows = packed(samples, ROWS)
    if name == "ours":
        return rows
    size = round(len(samples) / len(rows))
    order = range(len(samples))
    if name == "grouped":
        torch.manual_seed(0)
        order = get_length_grouped_indices([len(s) for s in samples], size)
    return [padded([samples[n] for n in order[at : at + size]]) for at in range(0, len(samples), size)]


def speed(samples: Sequence[Sample], rounds: int) -> dict:
    state = theirs(samples[0].look).state_dict()
    sides = {}
    for name in SIDES:
        model = ours(samples[0].look, state) if name == "ours" else theirs(samples[0].look)
        sides[name] = Side(name, samples, model)
    losses = {name: side.first_loss() for name, side in sides.items()}
    for name, loss in losses.items():
        assert abs(loss / losses["ours"] - 1) < 1e-4, f"{name} has another loss: {losses}"
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(rounds):
        for name, side in sides.items():
            began = time.process_time()
            side.one_pass()
            seconds[name].append(time.process_time() - began)
    best = {name: min(found) for name, found in seconds.items()}
    tokens = sum(map(len, samples))
    return {
        "tokens_per_s": {name: tokens / found for name, found in best.items()},
        "speed": {name: best[name] / best["ours"] for name in SIDES[1:]},
        "loss": losses["ours"],
        "loss_difference": max(abs(loss / losses["ours"] - 1) for loss in losses.values()),
        "steps": {name: len(side.batches) for name, side in sides.items()},
        "filled": {name: tokens / sum(_positions(b) for b in side.batches) for name, side in sides.items()},
    }


def _positions(batch) -> int:
    return (batch["input_ids"] if isinstance(batch, dict) else batch.input_ids).numel()


def peak(name: str, samples: Sequence[Sample]) -> float:
    """MiB that a pass takes at most, in this process."""
    before = psutil.Process().memory_info().rss
    model = theirs(samples[0].look)
    if name == "ours":
        model = ours(samples[0].look, model.state_dict())
    Side(name, samples, model).one_pass()
    return (peak_rss() - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--only", choices=SETS, action="append")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", nargs=2, metavar=("SIDE", "SET"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak:
        side, kind = args.peak
        look = Look(args.length, vocabulary=32_000)
        print(json.dumps(peak(side, draw(kind, args.samples, look))))
        return
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "versions": {m.__name__: m.__version__ for m in (torch, transformers)},
        "command": " ".join(["python", *sys.argv]),
    }
    for kind in args.only or SETS:
        found = report[kind] = {}
        for vocabulary in (4_096, 32_000):
            look = Look(args.length, vocabulary)
            found[str(vocabulary)] = speed(draw(kind, args.samples, look), args.rounds)
        command = [sys.executable, __file__, "--samples", str(args.samples), "--length", str(args.length)]
        mib = {}
        for side in SIDES:
            done = subprocess.run(
                [*command, "--peak", side, kind], check=True, capture_output=True, env=os.environ | RETURNED
            )
            mib[side] = json.loads(done.stdout)
        found["peak_mib"] = mib
        found["peak"] = {name: mib["ours"] / mib[name] for name in SIDES[1:]}
        for name in SIDES[1:]:
            fast, many = (found[str(v)]["speed"][name] for v in (4_096, 32_000))
            print(
                f"{kind:10} beside {name:8}  speed {fast:.2f}, at 32k {many:.2f}  "
                f"peak at 32k {found['peak'][name]:.2f}"
            )
    if args.out:
        args.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
