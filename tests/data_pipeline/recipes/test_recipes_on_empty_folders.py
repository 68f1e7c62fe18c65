"""Every shipped recipe that reads files says at once that the folder is the wrong one."""

import pytest

from data_pipeline.cli import main


@pytest.mark.parametrize("recipe", ["obelics-like", "captions", "pdf", "instruct", "synthetic"])
def test_a_folder_without_inputs_is_refused_before_anything_is_written(tmp_path, capsys, recipe):
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs/notes.txt").write_text("nothing that a recipe reads")
    command = ["data", "build", recipe, "--inputs", str(tmp_path / "inputs"), "--out", str(tmp_path / "out")]
    assert main(command) == 4
    said = capsys.readouterr().err
    assert "no file" in said or "no manifest" in said
    assert not (tmp_path / "out").exists()
