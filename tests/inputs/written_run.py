"""A run directory as training, evaluation and incidents leave it, written by hand."""

import base64
import io
import json
import math
import random
from pathlib import Path

import yaml
from PIL import Image, ImageDraw

from data_pipeline.manifest import Funnel, Manifest, TaskRecord, write_manifest
from trainer.observe.report import write_report

STAGES = ("align", "pretrain", "documents", "instruct")

HOSTILE = '<script>alert(1)</script> a "red" cube & it\'s <img src=x onerror=y>'


def picture(seed: int) -> str:
    rng = random.Random(seed)
    image = Image.new("RGB", (96, 96), (40, 44, 52))
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        x, y, r = rng.randint(12, 70), rng.randint(12, 70), rng.randint(8, 18)
        draw.ellipse((x, y, x + r, y + r), fill=tuple(rng.randint(60, 255) for _ in range(3)))
    data = io.BytesIO()
    image.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def example(i: int) -> dict:
    right = i % 4 != 3
    task = "vqa" if i % 2 else "caption"
    return {
        "task": task,
        "id": f"scene-{i}",
        "image": picture(i),
        "prompt": "What colour is the ball?" if task == "vqa" else "Describe the image.",
        "answer": HOSTILE if i == 0 else ("red" if right else "green"),
        "blind_answer": "blue",
        "truth": ["red", "red"] if task == "vqa" else ["a red ball left of a small cube"],
        "correct": right,
    }


def write_stage(run: Path, name: str, index: int, steps: int = 150) -> None:
    rng = random.Random(index)
    (run / name).mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        seconds = 0.4 + 0.05 * rng.random() + (3 if step == 1 else 0)
        record = {
            "stage": name,
            "step": step,
            "loss": 5 * math.exp(-step / 30) + 0.3 + 0.08 * rng.random(),
            "lr": 1e-3 * min(1, step / 10) * (1 + math.cos(math.pi * step / steps)) / 2,
            "grad_norm": 2 * math.exp(-step / 40) + 0.2 + 0.2 * rng.random(),
            "tokens": 4000,
            "target_tokens": 900,
            "images": 32,
            "tokens_per_s": 4000 / seconds,
            "step_s": seconds,
            "time": 1.7e9 + step,
        }
        lines.append(json.dumps(record))
    (run / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def write_evaluation(run: Path, name: str, index: int) -> None:
    kinds = {"colour": 0.95, "count": 0.62, "shape": 0.9, "where": 0.7, "yes/no": 0.99}
    results = {
        "stage": name,
        "step": 150,
        "captions": {
            "n": 200,
            "CIDEr": 2.1 * index,
            "CIDEr_blind": 0.41,
            "exact": 0.22 * index,
            "exact_blind": 0.01,
        },
        "vqa": {
            "n": 400,
            "accuracy": 0.25 + 0.2 * index,
            "accuracy_blind": 0.31,
            "per_question_type": kinds,
            "per_question_type_blind": {k: v / 2 for k, v in kinds.items()},
        }
        if index
        else None,
        "loss": {"n": 200, "right_image": 0.412, "wrong_image": 1.937},
    }
    directory = run / name / "eval" / "step_150"
    directory.mkdir(parents=True)
    (directory / "results.json").write_text(json.dumps(results))
    (directory / "examples.json").write_text(json.dumps([example(i) for i in range(12)]))


def write_dataset(directory: Path) -> None:
    funnel = {
        "scenes": Funnel(
            read=12000, written=11210, dropped={"too_small": 300, "near_duplicate": 440, "no_text": 50}
        ),
        "pages": Funnel(
            read=900, written=610, dropped={"language": 120, "decontaminated": 20, "too_short": 150}
        ),
        "dialogues": Funnel(read=5000, written=5000),
    }
    task = TaskRecord(
        task=0, tasks=1, fingerprint="f", shards=(), funnel=funnel, bad_inputs=({"file": "a.pdf"},)
    )
    licences = {"scenes": "CC0-1.0", "pages": "CC-BY-4.0"}
    write_manifest(
        directory,
        Manifest(name="demo", fingerprint="f", recipe={}, licences=licences, unread=(), tasks=(task,)),
    )


def write_recipe(run: Path) -> None:
    recipe = {
        "name": "demo",
        "data": {"datasets": ["data"]},
        "model": {
            "architecture": "autoregressive",
            "image": {"side": 64},
            "connector": {"kind": "pixel_shuffle"},
        },
        "backbones": {"vision": {"width": 128, "layers": 3}, "language": {"width": 192, "layers": 4}},
        "stages": [
            {
                "name": s,
                "steps": 150,
                "train": {"connector": 1.0, "language": {"dora": {"rank": 8}, "lr": 0.1}},
                "mixture": {"scenes": 2, "pages": 1},
            }
            for s in STAGES
        ],
    }
    run.mkdir(parents=True, exist_ok=True)
    (run / "recipe.resolved.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def make_run(run: Path) -> Path:
    """A finished run of four stages."""
    write_recipe(run)
    (run / "run.json").write_text(
        json.dumps(
            {
                "name": "demo",
                "created": "2026-01-02T03:04:05Z",
                "command": "fovea demo",
                "seed": 0,
                "world_size": 2,
                "zero_stage": 3,
            }
        )
    )
    (run / "env.json").write_text(
        json.dumps({"python": "3.11.9", "cores": 2, "memory_gib": 7.7, "torch": "2.13.0"})
    )
    (run / "summary.json").write_text(json.dumps({"wall_s": 512.25, "passed": True, "scores": {}}))
    (run / "commands.txt").write_text(
        "fovea data build demo --out runs/demo/data\n"
        + "".join(f"fovea train demo --stage {s} --run runs/demo\n" for s in STAGES)
    )
    for i, name in enumerate(STAGES):
        write_stage(run, name, i)
        write_evaluation(run, name, i)
    write_dataset(run / "data")
    return run


def write_incident(run: Path, step: int, **changes) -> None:
    directory = run / "align" / "incidents" / f"step_{step:06d}"
    directory.mkdir(parents=True)
    sample = {
        "id": HOSTILE,
        "source": "scenes",
        "rank": 1,
        "tokens": 24,
        "url": "https://example.org/a?b=1&c=2",
        "text": HOSTILE,
        "thumbnails": [picture(step), "https://example.org/tracker.png", 3],
    }
    about = {
        "step": step,
        "reason": "the gradient norm is inf",
        "action": "skip",
        "loss": 6.1,
        "grad_norm_by_module": {"connector": "nan", "language": 2.0},
        "time": 1e9 + step,
        "samples": [sample, "no sample"],
    }
    (directory / "incident.json").write_text(json.dumps(about | changes))


def rendered(run: Path) -> str:
    write_report(run, run / "report.html")
    return (run / "report.html").read_text(encoding="utf-8")
