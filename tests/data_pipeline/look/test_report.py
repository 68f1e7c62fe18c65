"""The report shows what is in the dataset's directory, to anyone, and does nothing else."""

import io
import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from data_pipeline.build.look.distributions import distributions
from data_pipeline.build.look.examples import Examples, write_examples
from data_pipeline.build.look.funnel import balanced
from data_pipeline.build.look.report import write_report
from data_pipeline.build.look.wording import percent, recipe_yaml
from data_pipeline.build.read.reading import Fault
from data_pipeline.build.score.columns import score_dataset
from data_pipeline.build.score.text import CaptionScorer
from data_pipeline.build.verify import verify
from data_pipeline.manifest import read_manifest
from data_pipeline.view import Exclusion, View, exclude, samples

FILES = ("report.html", "funnel.json", "card.md")
VOID = {"meta", "img", "br", "hr", "input", "link"}
SVG_SHAPES = {"rect", "line"}


class Page(HTMLParser):
    """What a page holds, seen with the standard library's parser."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]
        if tag not in VOID and tag != "li":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in SVG_SHAPES or tag in VOID
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag != "li":
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def report(directory) -> str:
    write_report(directory)
    return (directory / "report.html").read_text()


def test_the_same_dataset_gives_the_same_bytes_anywhere(built, tmp_path):
    write_report(built)
    shutil.copytree(built, tmp_path / "elsewhere" / "copy")
    first = {name: (built / name).read_bytes() for name in FILES}
    for directory in (built, tmp_path / "elsewhere" / "copy"):
        write_report(directory)
        assert {name: (directory / name).read_bytes() for name in FILES} == first
    assert not list(built.glob("*.tmp-*"))
    assert str(built).encode() not in b"".join(first.values())


def test_each_step_says_the_tokens_that_its_characters_are_about(built):
    words = " ".join(Page(report(built)).words.split())
    steps = json.loads((built / "funnel.json").read_text())["total"]["steps"]
    assert len(steps) > 2
    for chars in {step["text_chars"]["out"] for step in steps}:
        assert f"{chars:,} ≈ {chars / 4000:.3g}k tokens" in words


def test_the_dataset_still_verifies_with_its_report(built):
    before = read_manifest(built).digest
    write_report(built)
    verify(built)
    assert read_manifest(built).digest == before


def test_the_page_runs_nothing_and_loads_nothing(built):
    page = Page(report(built))
    assert page.open == []
    assert not {"script", "iframe", "object", "embed", "link", "form", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "srcset", "xlink:href", "action"):
            assert value.startswith(("data:image/jpeg;base64,", "#")), (tag, name, value[:50])
    policy = next(v for t, k, v in page.attributes if t == "meta" and k == "content" and "default-src" in v)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "@import" not in page.words
    assert "url(" not in page.words


def test_hostile_text_is_shown_as_text(built):
    page = Page(report(built))
    assert "<script>alert(1)</script>" in page.words
    assert "onerror=alert(2)" in page.words


def test_the_page_shows_counts_steps_examples_and_reasons(built):
    examples = Examples()
    fault = Fault(
        reason="image too elongated", detail="400x20 is <too> long", bad=False, file="long.png", where="r"
    )
    document = next(s for s in samples(built, source="documents-html") if s.media)
    examples.add_image("documents-html", fault, document, document.image_bytes[0])
    write_examples(built, 0, examples)
    page = Page(report(built))
    found = json.loads((built / "funnel.json").read_text())
    seen = found["total"]["seen"]
    assert f"Kept: 12 of {seen['samples']} samples" in page.words
    for step in found["total"]["steps"]:
        assert step["step"] in page.words
    for reason in found["total"]["dropped"]["images"]:
        assert reason in page.words
    assert "400x20 is <too> long" in page.words
    assert "OBELICS" in page.words
    assert "kind: captions" in page.words
    assert page.tags.count("img") >= 10


def test_what_does_not_balance_is_said_on_the_page(built):
    path = built / "manifest.json"
    raw = json.loads(path.read_text())
    raw["tasks"][0]["funnel"]["documents-html"]["written"] += 1
    path.write_text(json.dumps(raw))
    assert "The books of this build do not balance" in report(built)


def test_what_is_excluded_is_shown_as_excluded_and_never_as_kept(built):
    # All captions but one go, so that a page which did not look at exclusions would show some of them.
    captions = list(samples(built, source="documents-captions"))
    exclude(
        built,
        "opt-out",
        [Exclusion(s.id, None, "opted out", "by <list>") for s in captions[1:]],
        {"list": "o"},
    )
    page = Page(report(built))
    kept, excluded = page.words.split("Excluded after the build")
    for s in captions[1:]:
        number = s.segments[1].text if "number" in (s.segments[1].text or "") else s.segments[2].text
        assert f"{number}\n" not in kept
        assert f"{number} " not in kept
    assert excluded.count("opt-out: opted out (by <list>)") == 3
    found = json.loads((built / "funnel.json").read_text())
    assert found["sources"]["documents-captions"]["seen"]["samples"] == 1


def test_distributions_count_what_is_there(built):
    document = next(s for s in samples(built, source="documents-html") if len(s.media) > 1)
    exclude(built, "dedup", [Exclusion(document.id, document.media[0].media_id, "copy")], {})
    manifest = read_manifest(built)
    found = distributions(built, manifest, View.open(built, manifest))
    seen = list(samples(built))
    images = [[m for m in s.media if not m.error] for s in seen]
    assert found.seen == found.looked_at == len(seen)
    assert {b.label: b.count for b in found.kinds} == {
        kind: sum(s.kind == kind for s in seen) for kind in {s.kind for s in seen}
    }
    assert [b.count for b in found.images] == list(np.bincount([len(i) for i in images]))
    assert sum(b.count for b in found.longer_side) == sum(map(len, images))
    chars = [sum(len(t.text) for t in s.segments if t.text) for s in seen if s.source == "documents-html"]
    q = found.by_source["documents-html"]
    assert (q.count, q.values[3]) == (len(chars), pytest.approx(np.median(chars)))


def test_a_large_dataset_is_sampled_and_says_so(built):
    manifest = read_manifest(built)
    found = distributions(built, manifest, View.open(built, manifest), most=3)
    assert found.looked_at == 3 * len(manifest.funnel)
    assert found.seen == sum(s.samples for s in manifest.shards(format="arrow"))


def test_columns_of_scores_are_shown_with_their_yield(built):
    score_dataset(built, CaptionScorer())
    page = Page(report(built))
    assert "What a threshold on caption_words would keep" in page.words


def test_pictures_never_make_the_page_too_large(built, monkeypatch):
    monkeypatch.setattr("data_pipeline.build.look.report.MAX_PICTURE_CHARS", 40_000)
    examples = Examples(k=50)
    sample = next(s for s in samples(built) if s.media)
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    fault = Fault(reason="noise", detail="", bad=False, file="f", where="w")
    for _ in range(3):
        for source in ("documents-html", "documents-captions"):
            examples.add_image(source, fault, sample, out.getvalue())
    write_examples(built, 0, examples)
    text = report(built)
    assert "did not fit on this page" in text
    assert sum(len(v) for _, k, v in Page(text).attributes if k == "src") < 41_000 + 12 * 30


def test_rare_pictures_are_among_the_kept_examples(tmp_path, make):
    make.dataset(tmp_path, [make.document(n, pictures=int(n % 20 == 7)) for n in range(100)], per_shard=50)
    kept = report(tmp_path).split('id="kept"')[1].split('id="dropped"')[0]
    assert kept.count("data:image/jpeg") == 5  # all that there are
    assert kept.count("text, train") == 7


def test_a_dataset_without_samples_has_no_empty_charts(tmp_path, make):
    make.dataset(tmp_path, [])
    assert "<figure" not in report(tmp_path)


def test_a_dataset_of_which_everything_is_excluded_still_has_a_report(built):
    exclude(built, "opt-out", [Exclusion(s.id, None, "opted out") for s in samples(built)], {})
    page = Page(report(built))
    assert "The dataset shows no sample" in page.words


def test_a_share_is_never_rounded_to_all_or_nothing():
    assert percent(1.0) == "100%"
    assert percent(0.0) == "0%"
    assert percent(0.999999) == "99.99%"
    assert percent(0.000001) == "0.01%"
    assert percent(0.5) == "50.0%"


def test_the_recipe_is_shown_without_credentials():
    text = recipe_yaml({"endpoint": "https://me:secret@host/v1?key=hidden", "unset": None, "n": [1, 2]})
    assert "secret" not in text
    assert "hidden" not in text
    assert "unset" not in text
    assert "host/v1" in text


def test_the_funnel_of_the_files_balances_where_documents_are(built):
    write_report(built)
    found = json.loads((built / "funnel.json").read_text())
    html = found["sources"]["documents-html"]
    assert balanced({"sources": {"h": html}, "total": html}) == []
