"""What the documentation shows of a command is what the command prints."""

import doctest
import itertools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from documentation import (
    BLOCKS,
    COMMAND,
    SHELL,
    Block,
    commands,
)
from trainer.cli import main
from trainer.evaluation.readers import READERS

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
    monkeypatch.setenv("PATH", "")  # METEOR is there only where java is
    for block in BLOCKS:
        if block.page == shown.page and block.file:
            Path(block.file).write_text(block.text, encoding="utf-8")
    assert main(argv) == 0
    expected, found = (
        json.loads(text, parse_float=lambda number: round(float(number), 9))
        for text in (shown.text, capsys.readouterr().out)
    )
    assert list(found) == list(expected)
    assert found == expected


def test_every_metric_is_shown():
    assert {p.id for p in scores()} == set(READERS)


@pytest.mark.parametrize(("page", "verb"), [("docs/training.md", "model"), ("docs/cluster.md", "plan")])
def test_what_a_recipe_takes_is_as_shown(page, verb, capsys):
    shown = [b for b in BLOCKS if b.page == page and f"$ fovea {verb} " in b.text]
    assert shown
    for block in shown:
        for argv, output in session(block):
            run_command(argv, output, block, capsys)
