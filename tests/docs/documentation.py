"""The pages of the documentation and the blocks in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

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
