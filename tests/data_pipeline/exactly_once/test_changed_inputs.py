"""Inputs that change between or during builds are read again, never mixed."""

from pathlib import Path

import pytest

from data_pipeline.build.executor import LocalExecutor
from data_pipeline.build.run import build
from data_pipeline.errors import DataError
from data_pipeline.view import samples
from exactly_once import content, half_built, recipe


def swap_caption(inputs: Path, a: str = "picture number 3 ", b: str = "PICTURE NUMBER 3 ") -> None:
    """Another caption of the same length: only the time of the file tells."""
    file = inputs / "captions.jsonl"
    file.write_text(file.read_text().replace(a, b))


def test_inputs_that_changed_after_a_kill_are_read_again(inputs, tmp_path):
    half_built(inputs, tmp_path / "out")
    swap_caption(inputs)
    build(recipe(), tmp_path / "out", root=inputs)
    build(recipe(), tmp_path / "fresh", root=inputs)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
    assert any("PICTURE NUMBER 3 " in s.text for s in samples(tmp_path / "out"))


def test_a_lost_shard_is_not_made_again_of_other_inputs_than_the_rest(inputs, whole, tmp_path):
    swap_caption(inputs)
    next((whole / "shards").glob("*-00003-000.arrow")).unlink()
    build(recipe(), whole, root=inputs)
    build(recipe(), tmp_path / "fresh", root=inputs)
    assert content(whole) == content(tmp_path / "fresh")


class Touching(LocalExecutor):
    """Runs the tasks, and meanwhile somebody writes to the inputs."""

    def run(self, job, after=lambda done: None):
        super().run(job, after)
        swap_caption(Path(job.pipeline[0].readers["photos"].tree.root))


def test_inputs_that_change_during_a_build_end_it_and_the_repeat_reads_them_again(inputs, tmp_path):
    with pytest.raises(DataError, match=r"changed while the build read them: captions.jsonl\n"):
        build(recipe(), tmp_path / "out", root=inputs, executor=Touching())
    assert not (tmp_path / "out/manifest.json").exists()
    build(recipe(), tmp_path / "out", root=inputs)
    build(recipe(), tmp_path / "fresh", root=inputs)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
