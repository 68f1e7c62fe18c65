"""The tree: what is listed, what is opened, and what is refused, on this machine and behind a URL."""

import base64
import os
import pickle

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data_pipeline.build.read.files import NOT_FETCHED, Tree
from data_pipeline.build.read.reading import Fault, Picture
from data_pipeline.errors import ConfigError

FILES = {"b.json": b"[]", "a/c.JSON": b"{}", "a/x.jpg": b"jpeg", "a/images/y.png": b"png", "t.txt": b"t"}


def test_files_are_sorted_relative_names_of_the_wanted_endings(place):
    tree = place(FILES)
    assert tree.files((".json",)) == ["a/c.JSON", "b.json"]
    assert [s.name for s in tree.listing((".jpg", ".png"), "a", deep=False)] == ["a/x.jpg"]
    assert tree.listing((".jpg",), "nowhere") == []
    assert (tree.read("t.txt", 10), tree.size("a/x.jpg")) == (b"t", 4)


def test_a_file_as_root_is_the_only_file_and_its_folder_holds_the_pictures(place):
    tree = place(FILES)
    one = Tree.at(f"memory:/{tree.root}/a/c.JSON" if not tree.is_local else f"{tree.root}/a/c.JSON")
    assert one.files((".parquet",)) == ["c.JSON"]
    found = one.picture("y.png", ("", "images"), "c.JSON", "record 0")
    assert isinstance(found, Picture)
    assert (found.data, found.media.url) == (b"png", "images/y.png")


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("../t.txt", None),
        ("../../secret", "path leaves the source"),
        ("/etc/hostname", "path leaves the source"),
        ("https://h/x.jpg", "remote image"),
        ("//h/x.jpg", "remote image"),
        ("file:///etc/hostname", "remote image"),
        ("pipe:cat /etc/hostname", "remote image"),
        ("filecache::memory://x", "remote image"),
        ("gone.jpg", "missing image"),
        ("images", "missing image"),
        ("x\0.jpg", "missing image"),
        ("data:text/html;base64,AAAA", "unreadable image"),
        ("data:image/png;base64,A?A", "unreadable image"),
    ],
)
def test_a_picture_is_a_file_below_the_root_and_nothing_else(place, reference, reason):
    tree = place(FILES)
    secret = tree.root.rpartition("/")[0] + "/secret"
    tree.fs.pipe(secret, b"secret")
    found = tree.picture(reference, ("a",), "f", "w")
    assert (found.reason if isinstance(found, Fault) else None) == reason
    tree.fs.rm(secret)


def test_links_are_resolved_before_they_are_judged(folder):
    (folder.parent / "secret.jpg").write_bytes(b"secret")
    (folder / "out.jpg").symlink_to(folder.parent / "secret.jpg")
    (folder / "real.jpg").write_bytes(b"real")
    (folder / "in.jpg").symlink_to(folder / "real.jpg")
    os.mkfifo(folder / "pipe.jpg")
    tree = Tree.at(folder)
    assert tree.picture("out.jpg", ("",), "f", "w").reason == "path leaves the source"
    assert tree.picture("in.jpg", ("",), "f", "w").media.url == "real.jpg"
    assert tree.picture("pipe.jpg", ("",), "f", "w").reason == "missing image"
    assert tree.files((".jpg",)) == ["real.jpg"]
    with pytest.raises(PermissionError):
        tree.open("out.jpg")
    with pytest.raises(FileNotFoundError):
        tree.open("pipe.jpg")


def test_an_absolute_path_is_refused_even_where_it_points_inside(place):
    tree = place(FILES)
    found = tree.picture(f"{tree.root}/a/x.jpg", ("",), "f", "w")
    assert found.reason == "path leaves the source"


def test_an_address_is_a_reference_only_where_the_source_fetches(place):
    tree = place(FILES)
    keeping = Tree(tree.fs, tree.root, keep_remote=True)
    found = keeping.picture("https://h/x.jpg", ("",), "f", "w")
    assert (found.media.url, found.media.error, found.data) == ("https://h/x.jpg", NOT_FETCHED, None)
    assert keeping.picture("ftp://h/x.jpg", ("",), "f", "w").reason == "remote image"


def test_pictures_above_the_cap_are_not_kept_however_they_come(place):
    tree = place({"x.jpg": b"12345"})
    small = Tree(tree.fs, tree.root, max_bytes=4)
    uri = "data:image/png;base64," + base64.b64encode(b"12345678").decode()
    for found in (small.picture("x.jpg", ("",), "f", "w"), small.picture(uri, (), "f", "w"),
                  small.inline(b"12345", None, "f", "w")):  # fmt: skip
        assert (found.reason, found.bad) == ("image file too large", False)
    assert tree.picture(uri, (), "f", "w").data == b"12345678"
    assert small.read("x.jpg", 4).reason == "file too large"


@pytest.mark.parametrize(
    "url", ["reference://x", "filecache::memory://x", "simplecache::file:///etc", "zip://x"]
)
def test_protocols_outside_the_table_are_refused_before_anything_is_opened(url):
    with pytest.raises(ConfigError, match="no place to read from"):
        Tree.at(url)


def test_a_pipe_is_no_more_than_the_name_of_a_file(tmp_path):
    with pytest.raises(ConfigError, match="nothing at"):
        Tree.at(f"pipe:touch {tmp_path}/ran")
    assert not (tmp_path / "ran").exists()


def test_a_stamp_changes_with_the_file_at_equal_size(place):
    tree = place(FILES)
    before = tree.stamp("t.txt")
    assert tree.stamp("t.txt") == before == tree.listing((".txt",))[0]
    place({"t.txt": b"u"})
    if tree.is_local:
        os.utime(tree.local_path("t.txt"), ns=(1, 1))
    assert tree.stamp("t.txt").size == before.size
    assert tree.stamp("t.txt") != before


class _Storage(MemoryFileSystem):
    """A file system whose library has errors of its own."""

    class Gone(Exception):
        pass

    def _open(self, path, *args, **kwargs):
        raise self.Gone("the bucket is not there")


def test_errors_of_a_storage_library_become_faults():
    fsspec.filesystem("memory").pipe("/bucket/x.jpg", b"x")
    tree = Tree(_Storage(), "/bucket")
    assert tree.read("x.jpg", 10).detail == "cannot be opened: Gone: the bucket is not there"
    assert tree.picture("x.jpg", ("",), "f", "w").reason == "unreadable image"


def test_a_tree_travels_to_another_process(folder):
    (folder / "x.json").write_bytes(b"[]")
    assert pickle.loads(pickle.dumps(Tree.at(folder))).files((".json",)) == ["x.json"]
