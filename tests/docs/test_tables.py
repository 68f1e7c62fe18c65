"""The tables of the documentation, held to the code: keys, defaults, columns, codes, layers, floors."""

import json
import re
import tomllib
from collections.abc import Iterator
from typing import get_args

import pytest
from pydantic import BaseModel

from data_pipeline import errors
from data_pipeline.build.dedup.config import DedupConfig, Documents, Images, MinHash, NearImages
from data_pipeline.build.fetch.config import FetchConfig
from data_pipeline.build.filter.config import FilterConfig, Repetition, TextLimits
from data_pipeline.build.filter.presets import PRESETS
from data_pipeline.build.images.limits import ImageLimits
from data_pipeline.build.read.files import PROTOCOLS
from data_pipeline.build.read.pdf import PdfOptions
from data_pipeline.build.read.row_reader import RowOptions
from data_pipeline.build.read.rows.containers import CONTAINERS
from data_pipeline.build.read.source import DocumentSource, FileSource, SourceConfig
from data_pipeline.build.read.warc import WarcSource
from data_pipeline.build.recipe import RECIPES, BuildRecipe, ScenesSource, Source
from data_pipeline.build.slurm import SlurmConfig
from data_pipeline.build.synthesize.source import KeepLimits, SyntheticSource
from data_pipeline.sample import SCHEMA
from documentation import BLOCKS, ROOT, text_of
from trainer.config import Recipe, Stage
from trainer.engine.ds_config import OWNED_BY_RECIPE
from trainer.engine.faults import FACTORS, FULL, HANGS, KINDS, OOM, SLOW
from trainer.engine.guard import Guard
from trainer.engine.watchdog import Watchdog
from trainer.evaluation.config import Evaluation, InTraining, Suite
from trainer.models.moe.config import MixtureOfExperts
from trainer.models.tuning import Adapter, Tuning
from trainer.observe.config import Observe


def rows(name: str, heading: str) -> list[list[str]]:
    """Cells of the first table below a heading."""
    below = text_of(name).split(f"# {heading}\n", 1)[1]
    lines = below[below.index("\n|") :].lstrip("\n").split("\n\n", 1)[0].splitlines()
    return [[c.strip() for c in line.strip("|").split("|")] for line in lines[2:]]


def keys(name: str, heading: str) -> set[str]:
    return {k for row in rows(name, heading) for k in re.findall(r"`([^`]+)`", row[0])}


def test_the_keys_of_a_stage_and_their_defaults():
    assert keys("training.md", "Keys of a stage") == set(Stage.model_fields)
    for key, default, _ in rows("training.md", "Keys of a stage"):
        field = Stage.model_fields[key.strip("`")]
        if field.is_required():
            assert default == "required"
        else:
            value = field.default
            if isinstance(value, BaseModel):
                below = {"guard": "bad-steps", "watchdog": "ranks-that-hang"}[key.strip("`")]
                assert default == f"[below](#{below})"
                continue
            shown = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            assert default.strip("`") in (shown, shown.lower(), shown.removesuffix(".0")), key


def test_the_keys_of_a_guard_and_their_defaults():
    shown = {row[0].strip("`"): row[1] for row in rows("training.md", "Bad steps")}
    assert shown == {k: written(f.default) for k, f in Guard.model_fields.items()}


def test_the_keys_of_a_watchdog_and_their_defaults():
    shown = {row[0].strip("`"): row[1] for row in rows("training.md", "Ranks that hang")}
    assert shown == {k: written(f.default) for k, f in Watchdog.model_fields.items()}


def test_what_a_rehearsal_can_do_to_a_rank():
    shown = set(re.findall(r"`(\w+)`", "".join(row[0] for row in rows("reliability.md", "Game days"))))
    assert shown == {*KINDS, *HANGS, SLOW, OOM, FULL, *FACTORS}


def test_the_keys_of_what_is_trained():
    assert keys("training.md", "What is trained") == {*Tuning.model_fields, *Adapter.model_fields}


def test_the_keys_of_experts_and_their_defaults():
    shown = {row[0].strip("`"): row[1].strip("`") for row in rows("training.md", "Experts")}
    assert shown == {k: written(f.default) for k, f in MixtureOfExperts.model_fields.items()}


def test_the_keys_of_what_is_measured_and_their_defaults():
    shown = {row[0].strip("`"): row[1].strip("`") for row in rows("training.md", "What is measured")}
    assert shown == {k: written(f.default) for k, f in Observe.model_fields.items()}


def test_the_other_keys():
    assert keys("training.md", "A recipe") >= set(Recipe.model_fields) - {"data", "backbones", "model"}
    assert keys("evaluation.md", "Settings") == set(Evaluation.model_fields)
    assert keys("evaluation.md", "Beside training") == set(Suite.model_fields)
    assert keys("evaluation.md", "In training") == set(InTraining.model_fields)


# Heading of data-recipe.md: its model, and the models whose keys stand under a heading of their own.
KEYS = {
    "The recipe": (BuildRecipe, ()),
    "Sources": (FileSource, ()),
    "Documents": (DocumentSource, (FileSource,)),
    "Rows": (RowOptions, ()),
    "Kind pdf": (PdfOptions, ()),
    "Kind warc": (WarcSource, (DocumentSource,)),
    "Kind synthetic": (SyntheticSource, (FileSource,)),
    "Kept answers": (KeepLimits, ()),
    "Kind scenes": (ScenesSource, (SourceConfig,)),
    "Images": (ImageLimits, ()),
    "Filters": (FilterConfig, ()),
    "Limits of a text": (TextLimits, ()),
    "Repetition": (Repetition, ()),
    "Fetch": (FetchConfig, ()),
    "Copies": (DedupConfig, ()),
    "Copies of documents": (Documents, ()),
    "MinHash": (MinHash, ()),
    "Copies of images": (Images, ()),
    "Near images": (NearImages, ()),
    "Slurm": (SlurmConfig, ()),
}


def written(value: object) -> str:
    """A default as the page writes it."""
    match value:
        case None | () | "":
            return "none"
        case bool():
            return str(value).lower()
        case int():
            return f"{value:,}"
        case float():
            return f"{value:g}"
        case str():
            return value
        case tuple():
            return ", ".join(map(str, value))
    return "see below"


@pytest.mark.parametrize("heading", KEYS)
def test_the_keys_of_a_data_recipe_and_their_defaults(heading):
    model, elsewhere = KEYS[heading]
    left = {"kind"}.union(*(m.model_fields for m in elsewhere))
    fields = {k: f for k, f in model.model_fields.items() if k not in left}
    expected = {
        k: "required" if f.is_required() else written(f.get_default(call_default_factory=True))
        for k, f in fields.items()
    }
    assert {row[0].strip("`"): row[1] for row in rows("data-recipe.md", heading)} == expected


def test_every_kind_of_source_is_in_the_keys():
    models = {m for m, _ in KEYS.values()}
    for source in get_args(get_args(Source)[0]):
        assert set(source.model_fields) - {"kind"} <= set().union(*(m.model_fields for m in models))
        assert f"`{source.model_fields['kind'].default}`" in text_of("data.md")


def set_keys(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key in config.model_fields_set:
        value = getattr(config, key)
        if isinstance(value, BaseModel):
            yield from set_keys(value, f"{key}.")
        else:
            yield prefix + key, written(value)


def test_the_presets():
    lines = text_of("data-recipe.md").split("# Presets\n", 1)[1]
    names = re.findall(r"`([\w-]+)`", next(line for line in lines.splitlines() if line.startswith("| key")))
    cells = {row[0].strip("`"): row[1:] for row in rows("data-recipe.md", "Presets")}
    shown = {name: {k: c[n] for k, c in cells.items() if c[n]} for n, name in enumerate(names)}
    assert shown == {name: dict(set_keys(p)) for name, p in PRESETS.items() if name != "none"}


def test_the_protocols_and_containers():
    page = text_of("data.md")
    assert ", ".join(f"`{p}`" for p in PROTOCOLS) in " ".join(page.split())
    table = page.split("# Containers\n", 1)[1].split("\n\n### ", 1)[0]
    assert set(re.findall(r"`(\.[a-z.]+)`", table)) >= {
        s for s in CONTAINERS if not s.endswith((".gz", ".zst"))
    }


def test_the_readme_names_every_data_recipe_that_ships():
    shown = set(re.findall(r"`([\w-]+)`", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {p.stem for p in RECIPES.glob("*.yaml")} <= shown


def test_the_layouts():
    shown = set(re.findall(r"^\*\*`(\w+)`\*\*", text_of("data.md"), re.MULTILINE))
    assert shown == set(get_args(RowOptions.model_fields["layout"].annotation)) - {"auto"}


def test_the_columns_of_a_sample():
    assert keys("data.md", "The sample") == set(SCHEMA.names)


def test_the_fields_of_a_metrics_line():
    shown = next(b for b in BLOCKS if b.page == "docs/training.md" and b.language == "json")
    assert keys("training.md", "metrics.jsonl") == set(json.loads(shown.text))
    step = (ROOT / "trainer" / "loop.py").read_text(encoding="utf-8")
    assert all(f'"{key}"' in step for key in json.loads(shown.text))


def test_the_exit_codes():
    shown = {int(row[0]) for row in rows("training.md", "Exit codes")}
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.FoveaError)]
    assert shown == {c.exit_code for c in classes if c is not errors.FoveaError} | {0, 130}


def test_the_keys_that_the_recipe_owns():
    assert keys("training.md", "DeepSpeed's JSON") == set(OWNED_BY_RECIPE)


def test_the_layers_are_those_of_the_contract():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = next(c["layers"] for c in contract["tool"]["importlinter"]["contracts"] if "layers" in c)
    assert any(b.text.splitlines() == layers for b in BLOCKS if b.page == "docs/architecture.md")


def test_the_floors_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    floors = dict(re.match(r"([\w.-]+)>=([\d.]+)", d).groups() for d in project["dependencies"])
    for package, floor, _ in rows("decisions/0001-floors.md", "1. Version floors"):
        assert floor.split(",")[0] == floors[package]
