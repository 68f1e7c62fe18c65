"""One build of everything hostile, for all that is asked of it."""

import json
import os
import pickle
from pathlib import Path

import pytest

from data_pipeline.manifest import read_manifest
from data_pipeline.view import samples
from hostile.documents import crawls, pages, pdfs
from hostile.images import IMAGES, JPEG, REFERENCES
from hostile.program import Program, fovea
from hostile.rows import rows
from hostile.tars import tars

RECIPE = """
name: hostile
heldout: 0
tasks: 2
formats: [arrow, webdataset, parquet]
sources:
  - {name: images, kind: captions, path: images}
  - {name: references, kind: captions, path: references}
  - {name: tars, kind: captions, path: tars}
  - {name: rows, kind: captions, path: rows}
  - {name: pages, kind: html, path: pages}
  - {name: crawl, kind: warc, path: crawl}
  - {name: pdf, kind: pdf, path: pdf}
"""


def write_all(root: Path, canary: Path) -> None:
    for folder in ("images", "references", "tars", "rows", "pages", "crawl", "pdf"):
        (root / folder).mkdir(parents=True)
    (root.parent / "secret.jpg").write_bytes(JPEG)
    (root / "secret.jpg").write_bytes(JPEG)
    for name, (data, _) in IMAGES.items():
        (root / "images" / name).write_bytes(pickle.dumps(Program(canary)) if name == "pickle.png" else data)
    listed = [{"file": name, "caption": f"the caption of {name}"} for name in IMAGES]
    (root / "images/captions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in listed))
    (root / "references/link-to-secret.jpg").symlink_to("../secret.jpg")
    os.mkfifo(root / "references/pipe.jpg")
    named = [{"image": r.replace("{canary}", str(canary)), "caption": "c"} for r in REFERENCES]
    (root / "references/captions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in named))
    for name, (data, _) in tars(canary).items():
        (root / "tars" / name).write_bytes(data)
    (root / "rows/good.jpg").write_bytes(JPEG)
    for name, (data, _) in rows().items():
        (root / "rows" / name).write_bytes(data)
    os.mkfifo(root / "rows/pipe.jsonl")
    for page, (data, *_) in pages().items():
        Path(os.fsdecode(os.fsencode(root / "pages") + b"/" + os.fsencode(page))).write_bytes(data)
    (root / "pages/link.jpg").symlink_to("../../secret.jpg")
    (root / "pages/link.html").symlink_to("/etc/hostname")
    (root / "pages/short.jpg").write_bytes(JPEG[: len(JPEG) // 2])
    os.mkfifo(root / "pages/pipe.jpg")
    os.mkfifo(root / "pages/fifo.html")
    for folder, files in (("crawl", crawls()), ("pdf", pdfs())):
        for name, (data, _) in files.items():
            (root / folder / name).write_bytes(data)


class Built:
    """The finished build and what it said."""

    def __init__(self, folder: Path):
        self.canary, self.directory, self.recipe = folder / "ran", folder / "out", folder / "in/hostile.yaml"
        write_all(folder / "in", self.canary)
        self.recipe.write_text(RECIPE)
        arguments = ("build", self.recipe, "--out", self.directory, "--bad-inputs", "drop", "--workers", 2)
        self.code, self.out, self.err, self.used = fovea(*arguments)
        assert self.code == 0, self.err
        self.manifest = read_manifest(self.directory)
        self.samples = list(samples(self.directory))
        listed = [p.read_text().splitlines() for p in (self.directory / "dropped").glob("*.jsonl")]
        self.dropped = [json.loads(line) for lines in listed for line in lines]

    def reasons(self, source: str, part: str = "sample") -> dict[str, list[str]]:
        """By file, the sorted reasons for what was left out."""
        found: dict[str, list[str]] = {}
        for d in self.dropped:
            if (d["source"], d["part"]) == (source, part):
                found.setdefault(d["file"], []).append(d["class"])
        return {file: sorted(reasons) for file, reasons in found.items()}

    def kept(self, source: str) -> list[str]:
        """The address (a file, where it has no other) of each sample that was kept, sorted."""
        return sorted(s.url or "" for s in self.samples if s.source == source)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    return Built(tmp_path_factory.mktemp("hostile"))
