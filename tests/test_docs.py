"""The documentation, held to the code: links, commands, recipes, examples and their output, tables."""

import ast
import doctest
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
import yaml
from PIL import Image
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
from data_pipeline.build.recipe import RECIPES, BuildRecipe, ScenesSource, Source, load_build
from data_pipeline.build.slurm import SlurmConfig
from data_pipeline.build.synthesize.source import KeepLimits, SyntheticSource
from data_pipeline.sample import SCHEMA
from trainer.cli import _parser, main
from trainer.config import Recipe, Stage, load_recipe
from trainer.engine.ds_config import OWNED_BY_RECIPE
from trainer.evaluation.config import Evaluation

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE_NAME = re.compile(r"`([\w./-]+\.\w+)`")
COMMAND = re.compile(r"^(?:\$ |.*-- )?(?:.*RANK=.* |(?:\w+=\S+ )+)?(?:fovea|trainer\.cli) ([^']*)")
OVERRIDE = re.compile(r"^[\w.]+=")


@dataclass(frozen=True)
class Block:
    """A fenced block. `file`: the name that stands alone, in backticks, in the line before it."""

    page: str
    line: int
    language: str
    text: str
    file: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    found: list[Block] = []
    language: str | None = None
    file, start, inside = None, 0, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```") and language is None:
            language, start, inside = line[3:].strip(), number, []
        elif line.startswith("```"):
            name = str(page.relative_to(ROOT))
            found.append(Block(name, start, language or "", "\n".join(inside) + "\n", file))
            language, file = None, None
        elif language is not None:
            inside.append(line)
        elif line.strip():
            named = FILE_NAME.fullmatch(line.strip())
            file = named.group(1) if named else None
    assert language is None, f"{page}: the block of line {start} is not closed"
    return found


BLOCKS = [b for page in PAGES for b in blocks_of(page)]


def commands(block: Block) -> list[list[str]]:
    """The arguments of every `fovea ...` in the block, also where another program starts it."""
    lines = block.text.replace("\\\n", " ").splitlines()
    found = (COMMAND.search(line) for line in lines)
    return [shlex.split(match.group(1), comments=True) for match in found if match]


SHELL = ("console", "bash")
COMMANDS = [
    pytest.param(argv, id=f"{block} {' '.join(argv)}")
    for block in BLOCKS
    if block.language in SHELL
    for argv in commands(block)
]


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


def text_of(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


# --- links, commands, Python ------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_resolve(page):
    broken = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_reached_from_the_index():
    linked = {
        (ROOT / "docs" / link.partition("#")[0]).resolve() for link in LINK.findall(text_of("index.md"))
    }
    assert {p.resolve() for p in PAGES} - linked == {(ROOT / "docs" / "index.md").resolve()}


@pytest.mark.parametrize("argv", COMMANDS)
def test_a_shown_command_parses(argv, capsys):
    if argv[-1] == "--help":
        with pytest.raises(SystemExit, match=r"^0$"):
            _parser().parse_args(argv)
        return
    try:
        parsed = _parser().parse_args(argv)
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    assert all(OVERRIDE.match(o) for o in getattr(parsed, "overrides", []))


def test_overrides_for_the_tiny_recipe_fit_it():
    tried = 0
    for argv in (p.values[0] for p in COMMANDS):
        if argv[:2] == ["train", "tiny"]:
            parsed = _parser().parse_args(argv)
            load_recipe("tiny", parsed.overrides).stage(parsed.stage)
            tried += bool(parsed.overrides)
    assert tried >= 2


def python_names(module: str) -> set[str]:
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    assert path.is_file(), f"no module {module}"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined = {n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    targets = (t for n in tree.body if isinstance(n, ast.Assign) for t in n.targets)
    return defined | {t.id for t in targets if isinstance(t, ast.Name)}


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=str)
def test_python_compiles_and_names_what_exists(block):
    tree = ast.parse(block.text)
    compile(tree, str(block), "exec")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(("trainer", "data_")):
            assert {a.name for a in node.names} <= python_names(node.module)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in ("json", "jsonl")], ids=str)
def test_json_is_json(block):
    for text in block.text.splitlines() if block.language == "jsonl" else [block.text]:
        json.loads(text)


# --- recipes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_a_shown_recipe_loads(block, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(block.text, encoding="utf-8")
    page = yaml.safe_load(block.text)
    if "stages" in page:
        load_recipe(file)
    elif "sources" in page:
        load_build(file)


# --- pages that are run from top to bottom -----------------------------------------------------------


RUN = ("docs/data.md", "docs/curation.md")
PICTURE = re.compile(r"\b(?!missing)\w+\.png")


def lay_out(page: str, folder: Path) -> None:
    """The files that the page shows, and every picture that they name, each another one."""
    pictures: set[Path] = set()
    for block in BLOCKS:
        if block.page == page and block.file:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
            names = set(PICTURE.findall(block.text)) if path.suffix in (".json", ".jsonl", ".html") else set()
            pictures |= {path.parent / "images" / name for name in names}
    for n, path in enumerate(sorted(pictures)):
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (9 * n, 80, 120)).save(path)


def session(block: Block) -> Iterator[tuple[list[str], str]]:
    """Each command of a console block, with the output that is shown below it."""
    start, *parts = re.split(r"^\$ ", block.text.replace("\\\n", " "), flags=re.MULTILINE)
    assert not start, f"{block}: a console block of this page begins with '$ '; others are `bash`"
    for part in parts:
        line, _, shown = part.partition("\n")
        match = COMMAND.match(line)
        assert match, f"{block}: only fovea is run: {line}"
        yield shlex.split(match.group(1), comments=True), shown


def run_command(argv: list[str], shown: str, where: Block, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    code = main(argv)
    seen = capsys.readouterr()
    found = seen.out + seen.err
    assert (code != 0) == ("fovea: " in shown or "only in A" in shown), f"{where}: exit code {code}\n{found}"
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if shown and not doctest.OutputChecker().check_output(shown, found, flags):
        pytest.fail(f"{where}: fovea {' '.join(argv)}\n--- shown\n{shown}\n--- found\n{found}")


@pytest.mark.parametrize("page", RUN)
def test_a_page_runs_from_top_to_bottom_and_says_what_is_shown(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    lay_out(page, tmp_path)
    ran = 0
    for block in BLOCKS:
        if block.page != page:
            continue
        if block.language == "python" and not block.file:
            exec(compile(block.text, str(block), "exec"), {})
        elif block.language == "console":
            for argv, shown in session(block):
                run_command(argv, shown, block, capsys)
                ran += 1
    assert ran >= 8


# --- scores -----------------------------------------------------------------------------------------


def scores() -> list:
    found = []
    page = [b for b in BLOCKS if b.page == "docs/evaluation.md"]
    for block, after in itertools.pairwise(page):
        for argv in commands(block) if block.language in SHELL else []:
            if argv[0] == "score":
                found.append(pytest.param(argv, after, id=argv[1]))
    return found


@pytest.mark.parametrize(("argv", "shown"), scores())
def test_a_score_gives_the_shown_output(argv, shown, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in BLOCKS:
        if block.page == shown.page and block.file:
            Path(block.file).write_text(block.text, encoding="utf-8")
    assert main(argv) == 0
    expected, found = json.loads(shown.text), json.loads(capsys.readouterr().out)
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key] == (pytest.approx(value) if isinstance(value, float) else value)


def test_both_metrics_are_shown():
    assert [p.id for p in scores()] == ["captions", "vqa"]


# --- tables against the code ------------------------------------------------------------------------


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
            shown = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            assert default.strip("`") in (shown, shown.lower(), shown.removesuffix(".0")), key


def test_the_other_keys():
    assert keys("training.md", "A recipe") >= set(Recipe.model_fields) - {"data", "backbones", "model"}
    assert keys("evaluation.md", "Settings") == set(Evaluation.model_fields)


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


def test_files_that_the_pages_name_exist():
    """Paths in backticks that begin with a folder of the repository."""
    named = re.findall(r"`((?:trainer|data_pipeline|tests|ds_configs)/[\w./]+)`", "".join(map(_read, PAGES)))
    missing = {n for n in named if "NAME" not in n and not (ROOT / n).exists()}
    assert named
    assert not missing


def test_the_floors_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    floors = dict(re.match(r"([\w.-]+)>=([\d.]+)", d).groups() for d in project["dependencies"])
    for package, floor, _ in rows("decisions/0001-floors.md", "1. Version floors"):
        assert floor.split(",")[0] == floors[package]


def _read(page: Path) -> str:
    return page.read_text(encoding="utf-8")
