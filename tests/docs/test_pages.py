"""Links, commands, Python and recipes of the documentation, held to the code."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from data_pipeline.build.recipe import load_build
from documentation import (
    BLOCKS,
    COMMANDS,
    LINK,
    OVERRIDE,
    PAGES,
    ROOT,
    anchors,
    text_of,
)
from trainer.cli import _parser
from trainer.config import load_recipe


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


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_a_shown_recipe_loads(block, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(block.text, encoding="utf-8")
    page = yaml.safe_load(block.text)
    if "stages" in page:
        load_recipe(file)
    elif "sources" in page:
        load_build(file)


def test_files_that_the_pages_name_exist():
    """Paths in backticks that begin with a folder of the repository."""
    named = re.findall(r"`((?:trainer|data_pipeline|tests|ds_configs)/[\w./]+)`", "".join(map(_read, PAGES)))
    missing = {n for n in named if "NAME" not in n and not (ROOT / n).exists()}
    assert named
    assert not missing


def _read(page: Path) -> str:
    return page.read_text(encoding="utf-8")
