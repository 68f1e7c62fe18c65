"""Inputs that cannot be read: the build stops and names them, or drops and counts them. Never in silence."""

import json
import os

import pytest
from PIL import Image

from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.build.run import build
from data_pipeline.errors import ConfigError, DataError

SOURCES = [
    {"name": "captions", "kind": "captions", "path": "captions.json"},
    {"name": "qa", "kind": "questions", "path": "qa.jsonl"},
    {"name": "pages", "kind": "html", "path": "pages"},
    {"name": "pdf", "kind": "pdf", "path": "pdf"},
]
RECIPE = BuildRecipe(name="t", heldout=0.2, sources=SOURCES)


@pytest.fixture
def inputs(tmp_path):
    """Four sources, each with something sound and something that cannot be read."""
    root = tmp_path / "in"
    (root / "pages").mkdir(parents=True)
    (root / "pdf").mkdir()
    Image.effect_noise((64, 64), 50).convert("RGB").save(root / "good.jpg")
    data = (root / "good.jpg").read_bytes()
    (root / "short.jpg").write_bytes(data[: len(data) // 2])
    (root / "page.jpg").write_text("<!DOCTYPE html><html>404</html>")
    (root / "empty.png").write_bytes(b"")
    files = ("good.jpg", "short.jpg", "page.jpg", "empty.png", "gone.jpg", "../outside.jpg")
    records = [{"file": f, "caption": "c"} for f in files] + [
        {"caption": "no image"},
        "text",
        {"file": "good.jpg"},
    ]
    (root / "captions.json").write_text(json.dumps(records))
    (tmp_path / "outside.jpg").write_bytes(data)
    (root / "qa.jsonl").write_text('{"image": "good.jpg", "question": "q", "answer": "a"}\n{"image": \n\n')
    (root / "pages/x.html").write_text(
        "<p>A page of text, long enough to keep.</p><img src=../short.jpg><img src=s.jpg>"
    )
    (root / "pages/s.jpg").write_bytes(data[: len(data) // 2])
    (root / "pages/y.html").write_bytes(b"\0\1\2 binary")
    (root / "pdf/fake.pdf").write_text("PK not a pdf")
    (root / "pdf/broken.pdf").write_text("%PDF-1.7\nnothing else")
    return root


def test_the_build_stops_with_exit_code_4_before_there_is_a_dataset(inputs, tmp_path):
    with pytest.raises(DataError) as e:
        build(RECIPE, tmp_path / "out", root=inputs)
    assert e.value.exit_code == 4
    assert not (tmp_path / "out/manifest.json").exists()
    assert "--bad-inputs drop" in str(e.value)


def test_every_bad_input_is_named_with_what_was_expected_and_what_was_found(inputs, tmp_path):
    manifest = build(RECIPE, tmp_path / "out", root=inputs, bad_inputs="drop")
    found = {f"{b['file']} {b['where']}": b["reason"] for t in manifest.tasks for b in t.bad_inputs}
    expected = {
        "short.jpg": "truncated JPEG",
        "page.jpg": "not an image: starts like HTML ('<!DOCTYPE html",
        "empty.png": "the file is empty",
        "captions.json record 4": "no file 'gone.jpg'",
        "captions.json record 5": "'../outside.jpg' lies outside the source's folder",
        "captions.json record 6": "no image: expected one of file, image",
        "captions.json record 7": "expected a mapping, found str",
        "captions.json record 8": "no text: expected one of caption",
        "qa.jsonl line 2": "not JSON",
        "s.jpg": "truncated JPEG",
        "y.html": "not an HTML page: begins with '\\x00",
        "fake.pdf": "not a PDF: begins with 'PK not a pdf', expected %PDF-",
        "broken.pdf": "PDF that cannot be opened",
    }
    for place, reason in expected.items():
        assert any(p.startswith(place) and reason in r for p, r in found.items()), (place, found)
    assert len(found) == len(expected)


def test_what_was_read_is_what_was_written_plus_what_was_dropped(inputs, tmp_path):
    manifest = build(RECIPE, tmp_path / "out", root=inputs, bad_inputs="drop")
    for source, funnel in manifest.funnel.items():
        assert funnel.balanced, source
    assert (manifest.funnel["captions"].read, manifest.funnel["captions"].written) == (9, 1)
    assert manifest.funnel["pages"].dropped == {"unreadable file": 1}
    listed = [
        json.loads(x) for p in (tmp_path / "out/dropped").glob("*.jsonl") for x in p.read_text().splitlines()
    ]
    dropped = sum(sum(f.dropped.values()) for f in manifest.funnel.values())
    assert sum(x["part"] == "sample" for x in listed) == dropped


def test_after_a_stop_the_same_command_with_drop_redoes_nothing(inputs, tmp_path):
    with pytest.raises(DataError):
        build(RECIPE, tmp_path / "out", root=inputs)
    records = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "manifest").iterdir()}
    build(RECIPE, tmp_path / "out", root=inputs, bad_inputs="drop")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "manifest").iterdir()} == records


def test_after_a_repair_the_same_command_reads_the_repaired_file_even_at_equal_size(inputs, tmp_path):
    recipe = RECIPE.model_copy(update={"sources": RECIPE.sources[:1]})
    good = (inputs / "good.jpg").read_bytes()
    (inputs / "captions.json").write_text('[{"file": "x.jpg", "caption": "c"}]')
    (inputs / "x.jpg").write_bytes(b"?" * len(good))
    os.utime(inputs / "x.jpg", ns=(1, 1))
    with pytest.raises(DataError, match=r"x\.jpg"):
        build(recipe, tmp_path / "out", root=inputs)
    (inputs / "x.jpg").write_bytes(good)
    assert build(recipe, tmp_path / "out", root=inputs).funnel["captions"].written == 1


def test_a_bomb_is_refused_by_its_header(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("1", (20_000, 20_000)).save(tmp_path / "in/bomb.png")
    (tmp_path / "in/captions.json").write_text('[{"file": "bomb.png", "caption": "c"}]')
    recipe = RECIPE.model_copy(update={"sources": RECIPE.sources[:1]})
    manifest = build(recipe, tmp_path / "out", root=tmp_path / "in")
    assert manifest.funnel["captions"].dropped == {"image too large": 1}


def test_an_image_of_another_format_is_refused_though_its_library_could_read_it(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "in/x.jpg", "TIFF")
    (tmp_path / "in/captions.json").write_text('[{"file": "x.jpg", "caption": "c"}]')
    recipe = RECIPE.model_copy(update={"sources": RECIPE.sources[:1]})
    with pytest.raises(DataError, match="starts like TIFF"):
        build(recipe, tmp_path / "out", root=tmp_path / "in")


def test_a_source_that_is_not_there_is_an_error_of_the_recipe(tmp_path):
    with pytest.raises(ConfigError, match=r"source 'captions': nothing at .*captions\.json[\s\S]*--inputs"):
        build(RECIPE, tmp_path / "out", root=tmp_path)
    assert not (tmp_path / "out").exists()
