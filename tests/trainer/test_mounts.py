"""A file system that does not answer is named, and nobody waits for it."""

import os
import time
from pathlib import Path

import pytest

from data_pipeline.errors import PreflightError
from trainer.cli import main
from trainer.mounts import refuse_dead_mounts


@pytest.fixture
def holding(tmp_path, monkeypatch):
    """`stat` holds whoever asks for a path with 'dead' in it, as a dead mount would."""
    stat = tmp_path / "bin" / "stat"
    stat.parent.mkdir()
    stat.write_text(
        '#!/bin/sh\ncase "$*" in *dead*) exec sleep 600 ;; esac\nexec /usr/bin/env -i stat "$@"\n'
    )
    stat.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stat.parent}{os.pathsep}{os.environ['PATH']}")


def test_a_file_system_that_does_not_answer_is_named_in_time(holding, tmp_path):
    began = time.monotonic()
    paths = [tmp_path, Path("/mnt/dead"), tmp_path, Path("/mnt/dead too")]
    with pytest.raises(PreflightError, match=r"^/mnt/dead, /mnt/dead too: the file system did not answer"):
        refuse_dead_mounts(paths, seconds=4)
    assert time.monotonic() - began < 300


def test_what_answers_is_well_also_where_nothing_is_there(tmp_path):
    refuse_dead_mounts([tmp_path, tmp_path / "not there", Path(tmp_path / "--version")], seconds=300)


def test_training_does_not_begin_on_a_file_system_that_does_not_answer(holding, tmp_path, capsys):
    began = time.monotonic()
    assert main(["train", "tiny", "--stage", "align", "--run", str(tmp_path / "dead")]) == 3
    assert f"{tmp_path}/dead, {tmp_path}/dead/data" in capsys.readouterr().err
    assert time.monotonic() - began < 300
