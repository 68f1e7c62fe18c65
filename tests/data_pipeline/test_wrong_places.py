"""Where nothing can be written: said in words, before any work where it can be known, and nothing is lost."""

import errno
import os
import random
import resource
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline.cli import main
from data_pipeline.errors import ConfigError, PreflightError, refusal

CAPTIONS = '{"image": "a.png", "caption": "a red square"}\n'


@pytest.fixture
def inputs(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    noise = Image.frombytes("RGB", (300, 200), random.Random(0).randbytes(300 * 200 * 3))
    noise.save(folder / "a.png")  # 180 kB: more than the limit of the test below
    (folder / "captions.jsonl").write_text(CAPTIONS)
    return folder


@pytest.fixture
def built(tmp_path, make) -> Path:
    make.dataset(tmp_path / "d", [make.caption(n) for n in range(3)])
    return tmp_path / "d"


def refused(capsys, *argv: object) -> str:
    """The words in which a command is refused, by the parser or by the verb."""
    try:
        code = main(["data", *map(str, argv)])
    except SystemExit as e:
        code = e.code
    assert code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_file_where_a_directory_should_be_is_named_and_stays_as_it_is(out, inputs, built, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    where = tmp_path / out
    for argv in (["build", inputs], ["scenes", "--pages", 1], ["export", built, "--to", "obelics"]):
        said = refused(capsys, *argv, "--out", where)
        assert str(tmp_path / "file") in said
        assert "another place" in said or "another --out" in said
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("out", ["", "file/page.html"])
def test_a_page_that_cannot_be_written_is_refused_before_the_search(out, built, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    before = (built / "manifest.json").read_bytes()
    found = ["decontaminate", built, "--benchmark", built.parent, "--remove", "--out", tmp_path / out]
    for argv in (["preview", built, "--out", tmp_path / out], found):
        said = refused(capsys, *argv)
        assert "name a file" in said or "another place" in said
    assert (built / "manifest.json").read_bytes() == before


def test_a_picture_in_place_of_a_recipe_is_said_to_be_none(inputs, capsys):
    assert "a.png: no text in UTF-8" in refused(capsys, "build", inputs / "a.png")


@pytest.mark.parametrize("recipe", ["captions", "pdf"])
def test_a_folder_without_inputs_is_named_with_the_option_that_names_another(recipe, tmp_path, capsys):
    inputs = tmp_path / "in"
    inputs.mkdir()
    assert main(["data", "build", recipe, "--inputs", str(inputs), "--out", str(tmp_path / "d")]) == 4
    said = capsys.readouterr().err
    assert f"below {inputs};" in said
    assert "--inputs DIR" in said


@pytest.mark.parametrize("workers", [1, 2])
def test_a_build_without_room_is_said_and_goes_on_once_there_is_some(workers, inputs, tmp_path):
    command = [
        sys.executable,
        "-m",
        "data_pipeline.cli",
        "data",
        "build",
        str(inputs),
        f"--workers={workers}",
    ]

    def build(out: Path, limit: int) -> subprocess.CompletedProcess[str]:
        def bounded() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

        return subprocess.run(
            [*command, "--out", out], preexec_fn=bounded, capture_output=True, text=True, check=False
        )

    short = build(tmp_path / "d", 100_000)
    assert (short.returncode, "File too large" in short.stderr) == (3, True), short.stderr
    assert "the same command goes on" in short.stderr
    assert "Traceback" not in short.stderr
    assert not (tmp_path / "d/manifest.json").exists()
    assert build(tmp_path / "d", resource.RLIM_INFINITY).returncode == 0
    assert build(tmp_path / "e", resource.RLIM_INFINITY).returncode == 0
    assert (tmp_path / "d/manifest.json").read_bytes() == (tmp_path / "e/manifest.json").read_bytes()


def test_what_is_no_refusal_of_the_file_system_keeps_its_traceback():
    full = refusal(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "d/shards"))
    assert isinstance(full, PreflightError)
    assert str(full).startswith("d/shards: No space left on device\n")
    assert isinstance(refusal(OSError(errno.EROFS, os.strerror(errno.EROFS))), ConfigError)
    assert refusal(FileNotFoundError(errno.ENOENT, "gone", "x")) is None
    assert refusal(OSError("said by hand")) is None
    assert refusal(sqlite3.OperationalError("no such table")) is None
    full_database = sqlite3.connect(":memory:")
    full_database.execute("PRAGMA max_page_count=1")
    with pytest.raises(sqlite3.OperationalError) as error:
        full_database.execute("CREATE TABLE t (a)")
    assert isinstance(refusal(error.value), PreflightError)
