"""The whole road on this machine: the verbs one after another, as a user would type them."""

import json
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.errors import ConfigError, FoveaError
from data_pipeline.manifest import read_manifest, write_json
from trainer.config import RECIPES, Recipe, load_recipe
from trainer.documents_recipe import documents_recipe
from trainer.signals import run_process, stopped_by

# `--fast` takes the same road with less of everything: about two minutes instead of eight.
FAST_DATA = {"scenes_alt": 1500, "scenes_dense": 1500, "scenes_qa": 1500, "scenes_dialogue": 500}
FAST_STEPS = {"align": 15, "pretrain": 30, "instruct": 40, "adapt": 10}


def demo(
    *, out: Path, fast: bool, data: Path | None, scenes_weight: float, bad_inputs: str, nproc: int
) -> None:
    """Curate, train four stages, evaluate each, export, report; DIR/summary.json holds what was measured.

    Safe to repeat: what is finished is not done again. Raises ConfigError where `data` is no folder.
    """
    if data is not None and not data.is_dir():
        raise ConfigError(f"--data {data}: no such folder; name one that holds your documents.")
    if not 0 <= scenes_weight <= 1:
        raise ConfigError(f"--scenes-weight {scenes_weight}: a share from 0 to 1.")
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    road = _Road(out)
    recipe_file = out / "recipe.yaml"

    scenes = out / ("data" if data is None else "scenes")
    road.run(
        "data", "scenes", "--out", out / "raw", "--pages", 60 if fast else 300, "--pdfs", 10 if fast else 40
    )
    counts = [f"sources.{k}.count={v}" for k, v in FAST_DATA.items()] if fast else []
    road.run("data", "build", "demo", "--out", scenes, "--inputs", out / "raw", "--workers", 2, *counts)
    if data is not None:
        road.run("data", "build", data, "--out", out / "data", "--bad-inputs", bad_inputs)
    road.run("data", "verify", out / "data")
    road.run("data", "stats", out / "data")
    road.run("data", "preview", out / "data", "--out", out / "preview.html")

    page = yaml.safe_load((RECIPES / "tiny.yaml").read_text(encoding="utf-8"))
    if data is not None:
        scenes_manifest = read_manifest(scenes) if scenes_weight else None
        page = documents_recipe(page, read_manifest(out / "data"), scenes_manifest, scenes_weight)
    if fast:
        _shorten(page)
    recipe_file.write_text(yaml.safe_dump(page, sort_keys=False), encoding="utf-8")
    recipe = load_recipe(recipe_file)

    road.run("backbones", recipe_file, "--run", out, "--scenes", scenes)
    for stage in recipe.stages:
        road.run("train", recipe_file, "--stage", stage.name, "--run", out, "--nproc", nproc)
        road.run("eval", out / stage.name)
    last = recipe.stages[-1].name
    road.run("export", out / last, out / "exported", "--json", out / "exported.json")
    write_json(out / "summary.json", summarise(recipe, out, time.monotonic() - began))
    road.run("report", out)
    sys.stdout.write(f"\nDone in {time.monotonic() - began:.0f} s.  Open {out / 'report.html'}\n")


class _Road:
    """Runs `fovea ...` in a process of its own, as the user's shell would, and notes the command."""

    def __init__(self, out: Path) -> None:
        self._log = out / "commands.txt"
        self._log.write_text("", encoding="utf-8")

    def run(self, *words: object) -> int:
        argv = [str(w) for w in words]
        line = "fovea " + shlex.join(argv)
        sys.stdout.write(f"\n$ {line}\n")
        sys.stdout.flush()
        with self._log.open("a", encoding="utf-8") as f:
            f.write(line + "\n")
        # Ctrl-C in a terminal reaches the verb by itself: handed on, it would count twice.
        code, asked = run_process(
            [sys.executable, "-m", "trainer.cli", *argv], relayed=(signal.SIGTERM, signal.SIGUSR1)
        )
        if asked and code <= 0:
            raise stopped_by(asked[0], f"the demo stopped at:  {line}")
        if code != 0:
            raise _StepFailed(line, code)
        return code


class _StepFailed(FoveaError):
    """A verb of the demo failed and has said why; its exit code is the demo's."""

    def __init__(self, line: str, code: int) -> None:
        super().__init__(
            f"the demo stopped at:  {line}\n  Repeat the demo when that is mended: it goes on from there."
        )
        self.exit_code = code if code > 0 else 1


def summarise(recipe: Recipe, out: Path, wall_s: float) -> dict[str, Any]:
    """What was measured, from the files that the verbs left."""
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    stages = []
    for stage in recipe.stages:
        lines = (out / stage.name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [json.loads(line) for line in lines]
        seconds = sum(s["step_s"] for s in steps)
        stages.append(
            {
                "name": stage.name,
                "steps": len(steps),
                "loss_first": steps[0]["loss"],
                "loss_last": steps[-1]["loss"],
                "tokens_per_s": sum(s["tokens"] for s in steps) / seconds,
            }
        )
    last = recipe.stages[-1]
    results_file = out / last.name / "eval" / f"step_{last.steps:06d}" / "results.json"
    results = json.loads(results_file.read_text(encoding="utf-8"))
    captions, vqa = results["captions"] or {}, results["vqa"] or {}
    exported = json.loads((out / "exported.json").read_text(encoding="utf-8"))
    return {
        "wall_s": round(wall_s, 1),
        "stages": stages,
        "eval": {
            "vqa_accuracy": vqa.get("accuracy"),
            "vqa_accuracy_blind": vqa.get("accuracy_blind"),
            "caption_cider": captions.get("CIDEr"),
            "caption_cider_blind": captions.get("CIDEr_blind"),
            "caption_exact": captions.get("exact"),
            "loss": results["loss"],
        },
        "world_size": run["world_size"],
        "zero_stage": run["zero_stage"],
        "export_max_logit_diff": exported["max_logit_diff"],
    }


def _shorten(page: dict[str, Any]) -> None:
    page["backbones"]["vision"]["steps"] = 100
    page["backbones"]["language"]["steps"] = 40
    page["defaults"] |= {"global_batch": 8, "micro_batch": 4}
    for stage in page["stages"]:
        stage["steps"] = FAST_STEPS.get(stage["name"], 20)
        stage["checkpoint_every"] = 20
    page["evaluation"] |= {"captions": 40, "questions": 80, "documents": 40, "max_new_tokens": 24}
