"""A folder of documents with something of everything that a report shows: kept, cut, dropped, hostile."""

import json
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline.build.run import build

EVIL = '</p><script>alert(1)</script>"><img src=x onerror=alert(2)>\x1b]0;x| `rm` [a](javascript:x)'


def write_inputs(folder: Path) -> None:
    folder.mkdir()
    for n in range(24):
        Image.new("RGB", (60 + n, 40), (n * 10, 80, 120)).save(folder / f"{n}.jpg")
    Image.new("RGB", (400, 20), "red").save(folder / "long.png")
    (folder / "torn.jpg").write_bytes((folder / "1.jpg").read_bytes()[:400])
    records = [{"file": f"{n}.jpg", "caption": f"picture number {n}", "alt": EVIL} for n in range(12)]
    records += [{"file": "long.png", "caption": "too long"}, {"file": "torn.jpg", "caption": EVIL}]
    (folder / "captions.json").write_text(json.dumps(records))
    body = "".join(f"<p>{'Words of a paragraph. ' * 12}</p><img src='{n}.jpg'>" for n in range(12, 24))
    first = "<p>A first paragraph.</p><img src='long.png'><img src='gone.png'>"
    (folder / "page.html").write_text(f"<html><body><h1>Title</h1>{first}{body}</body></html>")
    (folder / "words.html").write_text(f"<html><body><p>{'Only words here. ' * 20}</p></body></html>")


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs") / "documents"
    write_inputs(folder)
    return folder


@pytest.fixture
def built(inputs: Path, tmp_path: Path) -> Path:
    build(inputs, tmp_path / "data", bad_inputs="drop", overrides=["heldout=0.3"])
    return tmp_path / "data"
