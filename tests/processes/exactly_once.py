"""A small build that tests kill, repeat and change, and what must be equal after it."""

import sys
from pathlib import Path

import yaml

from data_pipeline.build.look.funnel import balanced, funnel
from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.build.run import build
from data_pipeline.build.verify import verify
from data_pipeline.manifest import read_manifest

PHOTOS = {"name": "photos", "kind": "captions", "path": "captions.jsonl"}

SCENES = {"name": "scenes", "kind": "scenes", "style": "dense", "count": 900}


def page(**changes) -> dict:
    return {"name": "once", "tasks": 4, "shard_samples": 5, "heldout": 0.2, "sources": [PHOTOS], **changes}


def recipe(**changes) -> BuildRecipe:
    return BuildRecipe.model_validate(page(**changes))


def content(directory: Path) -> dict[str, bytes]:
    """Every file but datatrove's logs."""
    found = (p for p in directory.rglob("*") if p.is_file())
    return {n.as_posix(): p.read_bytes() for p in found if (n := p.relative_to(directory)).parts[0] != "logs"}


def sound(directory: Path) -> None:
    verify(directory)
    assert balanced(funnel(read_manifest(directory))) == []


def command(inputs: Path, out: Path, *more: str, **changes) -> list[str]:
    (inputs / "recipe.yaml").write_text(yaml.safe_dump(page(**changes)))
    words = ["data", "build", inputs / "recipe.yaml", "--out", out, *more]
    return [sys.executable, "-m", "data_pipeline.cli", *map(str, words)]


def half_built(inputs: Path, out: Path, **changes) -> None:
    """What a build leaves that ended after its first two tasks: their records and no manifest."""
    build(recipe(**changes), out, root=inputs)
    for name in ("manifest.json", "manifest/00002.json", "manifest/00003.json"):
        (out / name).unlink()
