"""Names of files that are no UTF-8: read like any other, and text wherever they are told."""

import os

import pytest

from data_pipeline.build.discover import discover
from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.reading import Picture
from data_pipeline.build.run import build
from data_pipeline.view import samples


@pytest.fixture
def folder(tmp_path, make):
    for name, data in (
        (b"caf\xe9.html", b"<p>A text of a page, long enough to keep.</p>"),
        (b"\xff.png", make.png()),
    ):
        (tmp_path / os.fsdecode(name)).write_bytes(data)
    return tmp_path


def test_a_name_is_spelled_out_and_opens_its_file(folder):
    tree = Tree.at(folder)
    assert tree.files((".html",)) == ["caf\\xe9.html"]
    with tree.open("caf\\xe9.html") as f:
        assert f.read(3) == b"<p>"
    assert tree.stamp("caf\\xe9.html").size > 0
    found = tree.picture("\\xff.png", ("",), "x", "x")
    assert isinstance(found, Picture)
    assert found.media.url == "\\xff.png"
    assert Tree.at(folder / os.fsdecode(b"caf\xe9.html")).files(()) == ["caf\\xe9.html"]


def test_a_file_that_is_really_called_so_comes_first(folder):
    (folder / "caf\\xe9.html").write_bytes(b"the other")
    with Tree.at(folder).open("caf\\xe9.html") as f:
        assert f.read() == b"the other"


def test_a_spelling_does_not_lead_out_of_the_root(folder):
    assert not Tree.at(folder).exists("\\x2e\\x2e/x")
    assert Tree.at(folder / "..").exists(f"{folder.name}/\\xff.png")


def test_a_folder_of_such_names_builds(folder, tmp_path_factory):
    (folder / os.fsdecode(b"note-\xfe.xyz")).write_bytes(b"")
    (folder / os.fsdecode(b"captions-\xe8.jsonl")).write_text('{"image": "\\\\xff.png", "caption": "c"}')
    assert discover(folder)[1] == ("note-\\xfe.xyz",)
    out = tmp_path_factory.mktemp("out")
    build(folder, out / "data")
    assert sorted(s.url for s in samples(out / "data")) == ["caf\\xe9.html", "captions-\\xe8.jsonl"]


def test_a_link_in_a_folder_is_not_followed_out_of_it(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/captions.jsonl").write_text('{"image": "s.jpg", "caption": "a secret"}')
    (tmp_path / "in").mkdir()
    (tmp_path / "in/page.html").write_text("<p>A text of a page, long enough to keep.</p>")
    (tmp_path / "in/captions.jsonl").symlink_to("../secret/captions.jsonl")
    (tmp_path / "in/more").symlink_to("../secret")
    recipe, unread = discover(tmp_path / "in")
    assert [s.kind for s in recipe.sources] == ["html"]
    assert unread == ("captions.jsonl",)
