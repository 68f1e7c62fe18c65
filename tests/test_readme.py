"""The README's commands, run as a user runs them, on the fast demo."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def commands(page: str = "README.md") -> list[str]:
    """Lines of a page's console blocks, without comments."""
    inside, lines = False, []
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = line.startswith("```console")
        elif inside:
            lines.append(line.split("#")[0].strip())
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run directory that the README speaks of, made by `fovea demo --fast`.

    FOVEA_DEMO names one that exists already; it is copied.
    """
    home = tmp_path_factory.mktemp("home")
    made = os.environ.get("FOVEA_DEMO")
    if made:
        shutil.copytree(made, home / "runs" / "demo")
    else:
        subprocess.run([BIN / "fovea", "demo", "--fast", "--out", "runs/demo"], cwd=home, check=True)
    return home


def test_the_demo_wrote_a_whole_summary(home):
    summary = json.loads((home / "runs" / "demo" / "summary.json").read_text())
    assert [s["name"] for s in summary["stages"]] == ["align", "pretrain", "instruct", "adapt"]
    assert all(s["loss_last"] < s["loss_first"] for s in summary["stages"][:3])
    assert (summary["world_size"], summary["zero_stage"]) == (2, 3)
    assert summary["export_max_logit_diff"] == 0.0
    assert summary["eval"].keys() >= {
        "vqa_accuracy",
        "vqa_accuracy_blind",
        "caption_cider",
        "caption_cider_blind",
        "caption_exact",
    }


def test_the_report_is_one_file_that_needs_no_network(home):
    page = (home / "runs" / "demo" / "report.html").read_text(encoding="utf-8")
    for stage in ("align", "pretrain", "instruct", "adapt"):
        assert stage in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert 'src="data:image/' in page


def test_the_readme_shows_the_two_commands_first():
    assert commands()[:2] == ["make demo", "make test"]


def run(line: str, home: Path) -> str:
    done = subprocess.run(
        [str(BIN / "fovea"), *shlex.split(line)[1:]], cwd=home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("fovea ") and "--data" not in c])
def test_a_command_of_the_readme_runs(line, home):
    run(line, home)


@pytest.mark.parametrize("line", commands("docs/stream.md"))
def test_a_command_of_the_guide_to_the_stream_runs_and_gives_what_it_shows(line, home):
    page = (ROOT / "docs" / "stream.md").read_text(encoding="utf-8")
    shown = re.search(rf"{re.escape(line)}\n```\n\n```text\n(.+?)\n```", page, re.DOTALL)
    printed = run(line, home).splitlines()
    assert not shown or shown[1].splitlines() == printed[: len(shown[1].splitlines())]


def test_the_demo_runs_on_a_folder_of_documents(home):
    """`fovea demo --data my_documents`, on pages that the raw scenes already are: HTML and PDF."""
    documents = shutil.copytree(home / "runs" / "demo" / "raw", home / "my_documents")
    done = subprocess.run(
        [BIN / "fovea", "demo", "--fast", "--data", documents, "--out", "runs/mine"],
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((home / "runs" / "mine" / "summary.json").read_text())
    assert len(summary["stages"]) == 4
    assert summary["eval"]["loss"]["n"] > 0
