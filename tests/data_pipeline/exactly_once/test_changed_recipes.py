"""Repeated with another recipe, a build goes on, or refuses and says what differs."""

import shutil

import pytest

from data_pipeline.build import recipe as recipes
from data_pipeline.build.run import build
from data_pipeline.errors import DataError
from data_pipeline.view import read_exclusions
from exactly_once import PHOTOS, content, half_built, recipe, sound


@pytest.mark.parametrize("workers", [1, 3])
def test_a_build_may_go_on_with_another_number_of_workers(workers, inputs, whole, tmp_path):
    half_built(inputs, tmp_path / "out")
    first = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/manifest").iterdir()}
    build(recipe(), tmp_path / "out", root=inputs, workers=workers)
    assert content(tmp_path / "out") == content(whole)
    assert first == {p: p.stat().st_mtime_ns for p in first}, "what was done is not done again"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tasks": 2}, "tasks: 4 there, 2 here"),
        ({"tasks": 5}, "tasks: 4 there, 5 here"),
        ({"heldout": 0.5}, "heldout: 0.2 there, 0.5 here"),
        ({"images": {"min_side": 40}}, "images.min_side: 16 there, 40 here"),
        (
            {"sources": [{**PHOTOS, "license": "CC0-1.0"}]},
            'sources.photos.license: null there, "CC0-1.0" here',
        ),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_recipe_or_number_of_tasks_is_refused_with_the_difference_and_nothing_is_lost(
    changes, told, finished, inputs, whole, tmp_path
):
    out = whole if finished else tmp_path / "half"
    if not finished:
        half_built(inputs, out)
    before = content(out)
    with pytest.raises(DataError, match="made of another recipe") as refused:
        build(recipe(**changes, dedup={"documents": {}}), out, root=inputs)
    assert str(refused.value).splitlines()[1:-1] == [f"  {told}"]
    assert refused.value.exit_code == 4
    assert content(out) == before
    build(recipe(), out, root=inputs)
    sound(out)


def test_a_build_that_stopped_before_it_made_anything_gives_way_to_another_recipe(inputs, whole, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(whole / "build.json", out)
    build(recipe(tasks=2), out, root=inputs)
    sound(out)


def test_a_dataset_of_another_version_of_the_schema_is_refused_as_such(inputs, whole, monkeypatch):
    monkeypatch.setattr(recipes, "SCHEMA_VERSION", 0)
    with pytest.raises(DataError, match=r"made of another version of Fovea\.\n  Choose another --out"):
        build(recipe(), whole, root=inputs)


def test_another_deduplication_keeps_the_shards_and_finds_its_exclusions_anew(inputs, whole, tmp_path):
    times = {p: p.stat().st_mtime_ns for p in (whole / "shards").iterdir()}
    near = {"images": {"near": {}}}
    changed = build(recipe(dedup=near), whole, root=inputs)
    assert times == {p: p.stat().st_mtime_ns for p in (whole / "shards").iterdir()}
    found = list(read_exclusions(whole, changed.exclusions[0]))
    assert len(found) == 6
    sound(whole)
    build(recipe(dedup=near), tmp_path / "fresh", root=inputs)
    assert content(whole) == content(tmp_path / "fresh")
    back = build(recipe(), whole, root=inputs)
    assert back.exclusions == ()
    assert times == {p: p.stat().st_mtime_ns for p in (whole / "shards").iterdir()}
