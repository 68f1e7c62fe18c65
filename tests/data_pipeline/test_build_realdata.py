"""A folder of real documents, as it lies: found, read without a fault, balanced, proved."""

from pathlib import Path

import pytest
from warcio.archiveiterator import ArchiveIterator

from data_pipeline.build.discover import discover
from data_pipeline.build.run import build
from data_pipeline.build.verify import verify
from data_pipeline.errors import ConfigError

REAL = Path(__file__).parents[2] / "../shared/realdata"


def html_records(folder):
    """How many web pages the crawls hold, as warcio counts."""
    found = 0
    for path in folder.glob("*.*"):
        with path.open("rb") as f:
            for record in ArchiveIterator(f, arc2warc=True):
                headers = record.http_headers if record.rec_type == "response" else None
                if headers is not None and headers.get_statuscode() == "200":
                    found += headers.get_header("Content-Type", "").startswith("text/html")
    return found


@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/realdata beside the repository")
def test_real_documents_are_read_without_a_fault_and_the_books_balance(tmp_path):
    manifest = build(REAL, tmp_path, workers=2)
    funnel = manifest.funnel
    assert all(f.balanced for f in funnel.values())
    assert [b for t in manifest.tasks for b in t.bad_inputs] == []
    assert funnel["coco_cc-captions"].written == 40
    assert funnel["vqa_rad-questions"].written == 147
    assert funnel["openstax_astronomy-captions"].written == 179
    assert funnel["html_gutenberg-html"].written > 2000
    assert (funnel["pdf-pdf"].written, funnel["pdf-pdf"].dropped) == (9, {})  # two of them without text
    # Damage of a crawl is counted, and stops nothing.
    assert funnel["warc-warc"].dropped == {"broken record": 1}
    assert funnel["warc-warc"].steps[0].samples == html_records(REAL / "warc")
    assert {u.split("/")[0] for u in manifest.unread} == {"skimage"}
    verify(tmp_path)


def test_a_folder_is_read_by_what_its_files_are_called(tmp_path):
    for name in ("top/captions.json", "top/val_captions.jsonl", "q/qa.json", "i/interleaved.jsonl",
                 "a b/x/y.html", "a b/z.pdf", "README.md", "data.parquet", "q/LICENSE.txt"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("[]")
    recipe, unread = discover(tmp_path)
    assert {(s.name, s.kind, s.path) for s in recipe.sources} == {
        ("top-captions-captions", "captions", "top/captions.json"),
        ("top-captions-val_captions", "captions", "top/val_captions.jsonl"),
        ("q-questions", "questions", "q/qa.json"),
        ("i-interleaved", "interleaved", "i/interleaved.jsonl"),
        ("a_b-html", "html", "a b"),
        ("a_b-pdf", "pdf", "a b"),
    }
    assert unread == ("data.parquet",)


def test_a_folder_with_nothing_to_read_says_what_is_read(tmp_path):
    with pytest.raises(ConfigError, match=r"captions\.json"):
        discover(tmp_path)
