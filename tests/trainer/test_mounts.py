"""A file system that does not answer is named, and nobody waits for it."""

import errno
import os
import time
from pathlib import Path

import pytest

from data_pipeline.errors import PreflightError
from trainer.cli import main
from trainer.mounts import refusals_named, refuse_dead_mounts


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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_file_system_that_refuses_is_named_with_its_reason_place_and_room(tmp_path, number):
    with pytest.raises(PreflightError) as said, refusals_named(tmp_path):
        raise OSError(number, os.strerror(number), str(tmp_path / "none" / "file"))
    assert str(said.value).startswith(f"{os.strerror(number)} ({tmp_path}/none/file). ")
    assert f"bytes are free in {tmp_path}" in str(said.value)
    assert (" inodes." in str(said.value)) == (number == errno.ENOSPC)


def test_other_errors_of_the_system_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), refusals_named(tmp_path):
        (tmp_path / "none").read_text()
