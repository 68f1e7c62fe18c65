"""Documents whose images are addresses come out in order, whole, or with a counted reason."""

import dataclasses
import ipaddress
import pickle

import pytest
from datatrove.data import Document

from data_pipeline.build.fetch import step as step_module
from data_pipeline.build.fetch.config import FetchConfig
from data_pipeline.build.fetch.step import FetchImages
from data_pipeline.build.images.check import CheckImages
from data_pipeline.build.images.limits import ImageLimits
from data_pipeline.sample import Media, Sample, Segment, content_id

LOCAL = [ipaddress.ip_network("127.0.0.1/32")]


def document(number, urls, kind="interleaved", own=()):
    """Text, then an image for each URL and one for each bytes of `own`, with text between."""
    media = [Media(media_id=content_id(u), url=u, error="not fetched") for u in urls]
    media += [Media(media_id=content_id(b), url="own.png", nbytes=len(b)) for b in own]
    segments = []
    for n in range(len(media)):
        segments += [Segment(type="text", text=f"before {n}"), Segment(type="image", media=n)]
    sample = Sample(
        id=f"d{number}",
        kind=kind,
        source="web",
        segments=tuple(segments),
        media=tuple(media),
        image_bytes=(*(None for _ in urls), *own),
    )
    mark = {"sample": sample, "source": "web", "file": "page.html", "where": f"line {number}"}
    return Document(
        text="x", id=sample.id, metadata={**mark, "fault": None, "cuts": (), "flow": (), "at": "read"}
    )


@pytest.fixture
def run(site, tmp_path):
    def run_step(documents, **settings):
        quick = {"per_host_rate": 1e6, "timeout_s": 200, "idle_s": 100, "backoff_s": 0.01, "retries": 0}
        config = FetchConfig(**{**quick, "allow_ports": (80, site.port), **settings})
        made = pickle.loads(pickle.dumps(FetchImages(config, tmp_path, allow=LOCAL)))  # as to a worker
        done = list(made.run(iter(documents)))
        run_step.stats = {k: v.total for k, v in made.stats.stats.items() if k.startswith("fetch")}
        return [d.metadata for d in done]

    return run_step


def test_bytes_id_and_size_are_filled_in(site, run):
    (mark,) = run([document(0, [site.url()])])
    (media,) = mark["sample"].media
    assert mark["sample"].image_bytes == (site.picture,)
    assert (media.media_id, media.nbytes) == (content_id(site.picture), len(site.picture))
    assert (media.url, media.error, media.opt_out) == (site.url(), None, False)
    assert mark["flow"] == (("fetch images", 1, len("before 0"), 0),)
    assert mark["cuts"] == ()
    assert run.stats == {"fetched": 1}


def test_a_document_loses_the_image_that_failed_and_nothing_else(site, make, run):
    urls = [site.url(), site.url("/status?404"), site.url("/ok/2")]
    (mark,) = run([document(0, urls, own=[make.png(color="blue")])])
    sample = mark["sample"]
    assert [m.url for m in sample.media] == [urls[0], urls[2], "own.png"]
    assert [(s.text, s.media) for s in sample.segments] == [
        ("before 0", None),
        (None, 0),
        ("before 1", None),
        ("before 2", None),
        (None, 1),
        ("before 3", None),
        (None, 2),
    ]
    assert sample.image_bytes == (site.picture, site.picture, make.png(color="blue"))
    (cut,) = mark["cuts"]
    assert (cut.reason, cut.file, cut.where, cut.bad) == ("fetch: 404", urls[1], "page.html, line 0", False)
    assert [entry["reason"] for entry in sample.lineage] == ["fetch: 404"]
    assert mark["fault"] is None
    assert run.stats == {"fetched": 2, "fetch: 404": 1}


@pytest.mark.parametrize("kind", ["caption", "instruct"])
def test_another_sample_ends_with_its_image(site, run, kind):
    (mark,) = run([document(0, [site.url("/status?410")], kind=kind)])
    assert (mark["fault"].reason, mark["fault"].file, mark["at"]) == (
        "fetch: 410",
        site.url("/status?410"),
        "fetch images",
    )


def test_a_document_ends_with_its_image_if_the_recipe_says_so(site, run):
    (mark,) = run([document(0, [site.url(), site.url("/status?404")])], missing="drop_document")
    assert mark["fault"].reason == "fetch: 404"
    assert mark["cuts"] == ()


def test_a_reference_may_be_kept_with_the_reason(site, run):
    site.robots = (200, b"User-agent: *\nDisallow: /ok")
    urls = [site.url(), site.url("/status?404")]
    (mark,) = run([document(0, urls)], missing="keep_reference")
    assert [(m.url, m.error, m.opt_out) for m in mark["sample"].media] == [
        (urls[0], "fetch: robots.txt", True),
        (urls[1], "fetch: 404", False),
    ]
    assert mark["sample"].image_bytes == (None, None)
    assert mark["cuts"] == ()


def test_what_is_not_an_image_is_left_to_the_image_check(site, run):
    (mark,) = run([document(0, [site.url("/html"), site.url()])])
    assert len(mark["sample"].media) == 2
    doc = Document(text="x", id="d", metadata=mark)
    list(CheckImages(ImageLimits(min_side=1, max_uniform=1)).run([doc]))
    assert [c.reason for c in doc.metadata["cuts"]] == ["not an image"]
    assert [m.url for m in doc.metadata["sample"].media] == [site.url()]


def test_faults_markers_local_and_missing_images_pass_untouched(site, make, run):
    faulty = document(0, [site.url()])
    faulty.metadata["fault"] = "some fault"
    marker = Document(text=" ", id="end", metadata={"source": "web", "read": 3, "images_read": 3})
    local = document(1, ["pictures/a.png", "ftp://a.test/x"], own=[make.png()])
    before = [dict(d.metadata) for d in (faulty, marker, local)]
    marks = run([faulty, marker, local, document(2, [site.url("/slow?0.1")])])
    assert marks[:2] == before[:2]
    assert marks[2]["sample"] == before[2]["sample"]
    assert [h.path for h in site.asked()] == ["/slow?0.1"]


def test_documents_keep_their_order_while_slow_hosts_are_waited_for(site, run):
    documents = [document(n, [site.url(f"/slow/{n}?{0.15 if n % 7 == 0 else 0}")]) for n in range(30)]
    marks = run(documents, per_host_connections=8)
    assert [m["sample"].id for m in marks] == [f"d{n}" for n in range(30)]
    assert all(m["sample"].image_bytes == (site.picture,) for m in marks)


def test_documents_wait_in_a_bounded_number_and_of_bounded_bytes(site, tmp_path, monkeypatch):
    monkeypatch.setattr(step_module, "_DOCUMENTS", 5)
    taken, most = 0, 0

    def documents(own):
        nonlocal taken
        for n in range(30):
            taken += 1
            yield document(n, [site.url(f"/slow/{n}?0.02")], own=own)

    def watch(own):
        nonlocal most
        config = FetchConfig(allow_ports=(site.port,), per_host_rate=1e6)
        for given, _ in enumerate(FetchImages(config, tmp_path, allow=LOCAL).run(documents(own)), 1):
            most = max(most, taken - given)

    watch([])
    assert 1 < most <= 5
    monkeypatch.setattr(step_module, "_BYTES", 25_000)
    taken = most = 0
    watch([bytes(10_000)])
    assert most <= 2


def test_the_images_of_one_document_are_bounded(site, run):
    cap = int(2.5 * len(site.picture))
    (mark,) = run([document(0, [site.url(f"/ok/{n}") for n in range(4)])], max_document_bytes=cap)
    assert len(mark["sample"].media) == 2
    assert [c.reason for c in mark["cuts"]] == ["fetch: document full"] * 2


def test_an_image_of_many_documents_is_fetched_once_and_counted_for_each(site, run):
    run([document(n, [site.url(), site.url("/status?404")]) for n in range(20)])
    assert len(site.asked()) == 2
    assert run.stats == {"fetched": 20, "fetch: 404": 20}


def test_a_document_without_anything_left_is_dropped_as_such(site, run):
    doc = document(0, [site.url("/status?404")])
    sample = doc.metadata["sample"]
    doc.metadata["sample"] = dataclasses.replace(sample, segments=sample.segments[1:])
    (mark,) = run([doc])
    assert mark["fault"].reason == "no image left"
