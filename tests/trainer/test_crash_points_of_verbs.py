"""A stage, or an export, that dies at any of its changes to a file ends, repeated, as if it had not died."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROCESSES = Path(__file__).parents[1] / "processes"


def die_everywhere(deed, run, room, stride=1, prelude=""):
    """What dying_runs.py finds. `prelude`: code that runs before it, to break what is under test."""
    shim, script = room / "die_at.so", room / "script.py"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", shim, PROCESSES / "die_at.c", "-ldl"], check=True)
    script.write_text(prelude + (PROCESSES / "dying_runs.py").read_text())
    done = subprocess.run(
        [sys.executable, script, shim, deed, run, room, str(stride)],
        env={**os.environ, "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def begun(trained, tmp_path):
    """A run of which the stage `align` alone is trained."""
    return Path(shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("instruct")))


def test_a_stage_that_dies_at_some_changes_of_a_file_ends_as_the_unbroken_one(begun, tmp_path):
    found = die_everywhere("train", begun, tmp_path, stride=40)
    assert found["wrong"] == []
    assert found["points"] > 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_stage_that_dies_at_any_change_of_a_file_ends_as_the_unbroken_one(begun, tmp_path):
    """Its warm start, three saves and a retention: losses, ledger and tensors are the same."""
    found = die_everywhere("train", begun, tmp_path)
    assert found["wrong"] == []
    assert found["points"] > 80


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_export_that_dies_at_any_change_of_a_file_is_the_old_one_the_new_one_or_not_there(begun, tmp_path):
    found = die_everywhere("export", begun, tmp_path)
    assert found["wrong"] == []
    assert found["points"] > 25


IN_PLACE = """
import contextlib
from trainer.export import directory, hf

@contextlib.contextmanager
def in_place(out, mark, what):
    directory.shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    yield out

hf.replacing = in_place
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_enumeration_notices_an_export_that_is_written_in_place(begun, tmp_path):
    found = die_everywhere("export", begun, tmp_path, prelude=IN_PLACE)
    assert any("no export" in fault for _, _, fault in found["wrong"])


NAMED_FIRST = """
from data_pipeline.manifest import write_json
from trainer.engine import saving

def named_first(part, final, record):
    part.replace(final)
    write_json(final / "COMPLETE.json", record)

saving.give_name = named_first
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_enumeration_notices_a_checkpoint_that_has_its_name_before_it_is_complete(begun, tmp_path):
    found = die_everywhere("train", begun, tmp_path, stride=3, prelude=NAMED_FIRST)
    assert any("is none" in fault for _, _, fault in found["wrong"])
