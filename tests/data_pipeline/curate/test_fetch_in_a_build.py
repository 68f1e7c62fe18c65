"""Pictures that a build fetches, and what it passes over."""

import dataclasses
import ipaddress
import json
from pathlib import Path

import pytest

from data_pipeline.build import run
from data_pipeline.build.fetch.step import FetchImages
from data_pipeline.build.look.funnel import balanced, funnel
from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.build.run import build
from data_pipeline.build.verify import verify
from data_pipeline.errors import DataError
from data_pipeline.manifest import read_manifest
from data_pipeline.sample import Media, Sample, Segment
from data_pipeline.view import samples
from planted import jpeg, prose, scene, skipped, stream


def fetched(tmp_path: Path, monkeypatch, site, missing: str, **more) -> Path:
    """A build that fetches from this machine, which no recipe can allow."""
    rows = [
        {"url": f"{site.url}/{name}.jpg", "caption": f"a caption of {name}"} for name in more.pop("names")
    ]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    words = prose(7)
    sequence = [
        {"text": words},
        {"image": f"{site.url}/a.jpg"},
        {"image": f"{site.url}/gone.jpg"},
        {"text": "The end of it."},
    ]
    (tmp_path / "interleaved.jsonl").write_text(json.dumps({"sequence": sequence}) + "\n")
    sources = [
        {"name": "caps", "kind": "captions", "path": "captions.jsonl"},
        {"name": "docs", "kind": "interleaved", "path": "interleaved.jsonl"},
    ]
    return built(tmp_path, monkeypatch, site, missing, sources)


def built(tmp_path: Path, monkeypatch, site, missing: str, sources: list[dict[str, str]]) -> Path:
    local = [ipaddress.ip_network("127.0.0.1/32")]
    monkeypatch.setattr(run, "FetchImages", lambda config, root: FetchImages(config, root, allow=local))
    fetch = {
        "allow_ports": [site.port],
        "per_host_rate": 1000,
        "retries": 1,
        "backoff_s": 0,
        "missing": missing,
    }
    page = {
        "name": "fetched",
        "heldout": 0,
        "fetch": fetch,
        "sources": sources,
    }
    build(BuildRecipe.model_validate(page), tmp_path / missing, root=tmp_path, bad_inputs="drop")
    verify(tmp_path / missing)
    assert balanced(funnel(read_manifest(tmp_path / missing))) == []
    return tmp_path / missing


def test_the_pictures_that_a_saved_page_names_by_address_are_fetched(tmp_path, monkeypatch, serve):
    data = jpeg(scene(900))
    site = serve(
        lambda path, _: (200, "image/jpeg", data) if path == "/a.jpg" else (404, "text/plain", b"no")
    )
    (tmp_path / "pages").mkdir()
    page = f"<p>{prose(7)}</p><img src='{site.url}/a.jpg'><p>The end of it.</p>"
    (tmp_path / "pages" / "one.html").write_text(f"<html><body>{page}</body></html>")
    sources = [{"name": "web", "kind": "html", "path": "pages"}]
    (document,) = samples(built(tmp_path, monkeypatch, site, "drop_image", sources))
    assert [s.type for s in document.segments] == ["text", "image", "text"]
    assert document.image_bytes == (data,)


def test_pictures_are_fetched_through_the_build_and_each_failure_has_its_reason(
    tmp_path, monkeypatch, serve, tokenizer
):
    data = {f"/{name}.jpg": jpeg(scene(900 + n)) for n, name in enumerate("abc")}
    bodies = {**data, "/text.jpg": b"<html>", "/private.jpg": data["/a.jpg"]}

    def answer(path, _):
        if path == "/robots.txt":
            return 200, "text/plain", b"User-agent: *\nDisallow: /private"
        return (200, "image/jpeg", bodies[path]) if path in bodies else (404, "text/plain", b"no")

    site = serve(answer)
    names = ["a", "b", "c", "a", "gone", "text", "private"]
    directory = fetched(tmp_path, monkeypatch, site, "drop_image", names=names)
    counts = read_manifest(directory).funnel
    assert counts["caps"].written == 4
    assert counts["caps"].dropped == {"fetch: 404": 1, "fetch: robots.txt": 1, "not an image": 1}
    assert {b for s in samples(directory, source="caps") for b in s.image_bytes} == set(data.values())
    (document,) = samples(directory, source="docs")
    assert [s.type for s in document.segments] == ["text", "image", "text"]
    assert document.image_bytes == (data["/a.jpg"],)
    assert (site.hits["/a.jpg"], site.hits["/private.jpg"]) == (1, 0)
    # References that are kept: nothing is asked again, and training passes over what has no bytes.
    kept = fetched(tmp_path, monkeypatch, site, "keep_reference", names=names)
    assert site.hits["/a.jpg"] == 1
    found = {s.media[0].url.rsplit("/", 1)[-1]: s for s in samples(kept, source="caps")}
    assert {n for n, s in found.items() if s.image_bytes[0] is None} == {"gone.jpg", "private.jpg"}
    assert found["private.jpg"].media[0].opt_out is True
    with pytest.raises(DataError, match="'docs' has no sample with a target to train on: picture missing"):
        stream(kept, tokenizer, ["caps", "docs"], tmp_path / "run")  # its one document lost a picture
    training = stream(kept, tokenizer, ["caps"], tmp_path / "run")
    while sum(training.skipped.values()) < 6:
        training.next()
    training.close()
    assert set(training.skipped) == {"picture missing"}
    without = {s.id for s in samples(kept, source="caps") if None in s.image_bytes}
    assert skipped(tmp_path / "run") == without


def test_pages_without_text_and_pictures_without_bytes_are_passed_over_and_counted(tmp_path, make, tokenizer):
    scan = Sample(
        id="scan",
        kind="pdf",
        source="docs",
        segments=(Segment(type="image", media=0),),
        media=(Media(media_id="page", kind="page"),),
        image_bytes=(make.png(),),
    )
    lost = dataclasses.replace(make.document(1), id="lost", image_bytes=(None,))
    make.dataset(tmp_path, [scan, lost, *(make.document(n) for n in range(2, 9))])
    training = stream(tmp_path, tokenizer, ["docs"], tmp_path / "run", length=96)
    while len(training.skipped) < 2:
        training.next()
    training.close()
    assert set(training.skipped) == {"no targets", "picture: no bytes"}
    assert skipped(tmp_path / "run") == {"scan", "lost"}
