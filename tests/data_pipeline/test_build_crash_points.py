"""Whatever dies at any write, rename, removal or new directory ends, run again, as if it had not died."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from data_pipeline.build.run import build
from data_pipeline.build.scenes.documents import write_documents
from endpoint import Endpoint, said

SHIM = Path(__file__).parents[1] / "processes" / "die_at.c"
SCRIPT = Path(__file__).parent / "crash" / "every_point.py"
# Everything that writes: all formats, an index of a crawl, lists and examples of what was dropped, both
# stages of deduplication that keep files, exclusions, report, card and funnel.
RECIPE = """
name: crash
tasks: 2
bad_inputs: drop
formats: [arrow, webdataset, parquet]
shard_samples: 4
heldout: 0
filters: {document: {max_chars: 400}}
dedup:
  documents: {exact: true, minhash: {ngram: 2, buckets: 2, hashes: 2}, image_sets: 1}
  images: {max_bytes_count: 9, near: {}}
sources:
  - {name: photos, kind: captions, path: captions.json}
  - {name: pages, kind: html, path: web, max_chars: 400}
  - {name: crawl, kind: warc, path: crawl, max_chars: 400}
"""

# The kinds and steps that the other one has not: answers of a model and their cache, papers, dialogues,
# documents in rows, the count of paragraphs that pages share, personal data, samples held out.
OTHERS = """
name: others
tasks: 2
bad_inputs: drop
formats: [arrow]
heldout: 0.3
filters: {personal_data: [email], languages: [en]}
dedup:
  documents: {exact: true}
  images: {max_phash_count: 9}
sources:
  - {name: papers, kind: pdf, path: drawn/pdf, embedded_images: true}
  - {name: pages, kind: html, path: web, filters: {max_paragraph_count: 2}}
  - {name: dialogues, kind: questions, path: dialogues.json}
  - {name: documents, kind: interleaved, path: documents.jsonl}
  - {name: described, kind: synthetic, path: built, task: caption, endpoint: "URL", model: tiny}
  - {name: asked, kind: synthetic, path: built, task: qa, endpoint: "URL", model: tiny, chunk: 2}
"""


@pytest.fixture
def others(inputs: Path, tmp_path: Path) -> Iterator[Path]:
    """The inputs of OTHERS, with the endpoint that answers."""
    write_documents(inputs / "drawn", pages=0, pdfs=2, seed=0)
    rows = [{"image": f"{n % 4}.png", "question": f"Which picture is number {n}?", "answer": "This one."}
            for n in range(5)]  # fmt: skip
    (inputs / "dialogues.json").write_text(json.dumps([*rows, {"question": "?"}]))
    long = {
        "sequence": [{"text": "Some words before it."}, {"image": "1.png"}, {"text": "Write to a@b.org."}]
    }
    (inputs / "documents.jsonl").write_text(f"{json.dumps(long)}\n{json.dumps({'sequence': 3})}\n")
    build(inputs / "recipe.yaml", tmp_path / "built", workers=1)
    shutil.move(tmp_path / "built", inputs / "built")

    pairs = json.dumps([{"question": "What is it?", "answer": "A square of one colour."}])
    endpoint = Endpoint(lambda *_: said(pairs))  # a poor caption, and one all the same
    (inputs / "recipe.yaml").write_text(OTHERS.replace("URL", endpoint.url))
    yield inputs
    endpoint.close()


@pytest.fixture
def inputs(tmp_path: Path, make) -> Path:
    folder = tmp_path / "in"
    (folder / "web").mkdir(parents=True)
    for n in range(5):
        (folder / f"{n}.png").write_bytes(make.png(40, 30, color=(n * 40, 90, 10)))
        (folder / "web" / f"{n}.png").write_bytes(make.png(40, 30, color=(9, n * 40, 77)))
        words = "these words come on every page alike so that they are near copies of one another"
        page = f"<h1>Page {n}</h1><p>{words}</p><img src='{n % 4}.png'><p>after it {n}</p>"
        (folder / "web" / f"{n}.html").write_text(f"<html><body>{page}</body></html>")
    records = [{"image": f"{n % 4}.png", "caption": f"picture {n % 4}"} for n in range(5)]
    records += [{"image": "none.png", "caption": "gone"}, {"image": "4.png", "caption": "long " * 99}]
    (folder / "captions.json").write_text(json.dumps(records))
    for n in range(2):
        _crawl(folder / "crawl" / f"{n}.warc.gz", n, make.png(50, 30, color=(n * 99, 200, 9)))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def _crawl(path: Path, n: int, picture: bytes) -> None:
    """A page and its picture."""
    path.parent.mkdir(exist_ok=True)
    page = f"<html><body><p>Crawled page {n} has some words.</p><img src='/{n}.png'><p>End.</p>".encode()
    with path.open("wb") as f:
        writer = WARCWriter(f, gzip=True)
        for url, data, kind in ((f"/{n}.html", page, "text/html"), (f"/{n}.png", picture, "image/png")):
            http = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.1")
            writer.write_record(
                writer.create_warc_record(
                    f"http://h.org{url}",
                    "response",
                    payload=io.BytesIO(data),
                    http_headers=http,
                    warc_headers_dict={"WARC-Date": "2024-05-06T07:08:09Z"},
                )
            )


def die_everywhere(deed: str, inputs: Path, work: Path, prelude: str = "") -> dict:
    """What every_point.py finds. `prelude`: code that runs before it, to break what is under test."""
    shim, script = work / "die_at.so", work / "script.py"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", shim, SHIM, "-ldl"], check=True)
    script.write_text(prelude + SCRIPT.read_text())
    ran = subprocess.run(
        [sys.executable, script, shim, deed, inputs, work],
        env={**os.environ, "LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("deed", "changes"), [("build", 250), ("withdraw", 5), ("exclude", 3), ("export", 6), ("copy", 40)]
)
def test_what_dies_at_any_change_of_a_file_ends_byte_identical_when_repeated(deed, changes, inputs, tmp_path):
    found = die_everywhere(deed, inputs, tmp_path)
    assert found["wrong"] == []
    assert found["changes"] >= changes


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_build_of_every_other_kind_that_dies_anywhere_ends_byte_identical_when_repeated(others, tmp_path):
    found = die_everywhere("build", others, tmp_path)
    assert sorted({fault for *_, fault in found["wrong"]}) == []
    assert found["changes"] >= 300


IN_PLACE = """
import contextlib
from data_pipeline import manifest

@contextlib.contextmanager
def in_place(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as f:
        yield f

manifest.commit = in_place
"""


@pytest.mark.slow
def test_the_enumeration_notices_files_that_are_written_in_place(inputs, tmp_path):
    found = die_everywhere("exclude", inputs, tmp_path, prelude=IN_PLACE)
    assert any("manifest.json is neither old nor new" in fault for _, _, fault in found["wrong"])
