"""SPICE by the program of pycocoevalcap. Its parser cannot be had without a network, so a stand-in takes the
program's place: it reads and writes what pycocoevalcap's caller writes and reads."""

import sys

import pytest

from data_pipeline.errors import DataError, PreflightError
from trainer.evaluation import spice as spice_file
from trainer.evaluation.spice import PARSER, spice

HYPS = [["a", "dog"], ["two", "red", "cats"]]
REFS = [[["a", "brown", "dog"], ["dogs"]], [["two", "cats"]]]
PROGRAM = """#!{python}
import json, sys
words = sys.argv[1:]
assert words[:3] == ["-Xmx8G", "-jar", "spice-1.0.jar"], words
page = json.load(open(words[3]))
assert [item["image_id"] for item in page] == [0, 1]
assert page[1] == {{"image_id": 1, "test": "two red cats", "refs": ["two cats"]}}
out = [{{"image_id": i["image_id"], "scores": {{"All": {{"f": 0.25 + i["image_id"] / 2}}}}}} for i in page]
{more}
json.dump(out, open(words[words.index("-out") + 1], "w"))
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Write what stands for `java`, and put the program's parser in place."""
    package = tmp_path / "pycocoevalcap"
    (package / "spice" / "lib").mkdir(parents=True)
    (package / "__init__.py").touch()
    for name in PARSER:
        (package / "spice" / "lib" / name).touch()
    monkeypatch.delitem(sys.modules, "pycocoevalcap", raising=False)
    monkeypatch.syspath_prepend(tmp_path)

    def write(more: str = "") -> None:
        java = tmp_path / "java"
        java.write_text(PROGRAM.format(python=sys.executable, more=more), encoding="utf-8")
        java.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return write


def test_the_score_is_the_mean_of_the_captions(program):
    program()
    assert spice(HYPS, REFS) == 0.5


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("sys.exit('OutOfMemoryError: Java heap space')", "heap space"),
        ("out.pop()", "scored 1 of 2 captions"),
    ],
)
def test_a_program_that_fails_is_an_error_with_what_it_said(program, more, said):
    program(more)
    with pytest.raises(DataError, match=said):
        spice(HYPS, REFS)


def test_what_is_missing_is_named_with_where_it_belongs(program, tmp_path, monkeypatch):
    program()
    (tmp_path / "pycocoevalcap" / "spice" / "lib" / PARSER[1]).unlink()
    with pytest.raises(PreflightError, match=f"spice/lib has no {PARSER[1]}"):
        spice(HYPS, REFS)
    monkeypatch.setattr(spice_file, "find_spec", lambda _: None)
    with pytest.raises(PreflightError, match="pip install"):
        spice(HYPS, REFS)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PreflightError, match="no java"):
        spice(HYPS, REFS)
