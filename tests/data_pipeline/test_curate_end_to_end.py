"""A small corpus in which everything is planted: each plant meets its one fate, and all else is kept.

Build, deduplicate, decontaminate, withdraw, report, stream: by the real verbs, on real files and servers.
"""

import contextlib
import dataclasses
import io
import ipaddress
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageOps

from data_pipeline.build import run
from data_pipeline.build.fetch.step import FetchImages
from data_pipeline.build.look.funnel import balanced, funnel
from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.build.run import build
from data_pipeline.build.split import is_heldout
from data_pipeline.build.verify import verify
from data_pipeline.build.withdraw import withdraw
from data_pipeline.cli import main
from data_pipeline.errors import DataError
from data_pipeline.image_spec import ImageSpec
from data_pipeline.manifest import read_manifest
from data_pipeline.sample import Media, Sample, Segment, content_id
from data_pipeline.stream.budget import Budget
from data_pipeline.stream.datasets import Datasets
from data_pipeline.stream.loader import Stream
from data_pipeline.stream.measure import sizes_of
from data_pipeline.stream.rendering import Rendering
from data_pipeline.stream.shares import Shares
from data_pipeline.view import View, record_batches, samples

HELDOUT = 0.25
REPOSITORY = Path(__file__).parents[2]
WORDS = [
    "the",
    "a",
    "an",
    "of",
    "and",
    "to",
    "in",
    "that",
    "was",
    "with",
    "for",
    "from",
    "on",
    "at",
    "by",
    "this",
    "which",
    "there",
    "their",
    "when",
    "where",
    "after",
    "before",
    "old",
    "river",
    "stone",
    "bridge",
    "village",
    "mountain",
    "forest",
    "garden",
    "winter",
    "summer",
    "morning",
    "evening",
    "people",
    "children",
    "market",
    "church",
    "harbour",
    "ship",
    "captain",
    "letter",
    "story",
    "window",
    "kitchen",
    "bread",
    "apple",
    "horse",
    "farmer",
    "teacher",
    "school",
    "music",
    "painting",
    "colour",
    "light",
    "shadow",
    "road",
    "journey",
    "night",
    "star",
    "ocean",
    "island",
    "bird",
    "fish",
    "tree",
    "leaf",
    "flower",
    "rain",
    "walked",
    "carried",
    "found",
    "heard",
    "remembered",
    "wrote",
    "built",
    "opened",
    "crossed",
    "followed",
    "watched",
    "gathered",
    "told",
    "left",
    "slowly",
    "quietly",
    "often",
    "never",
    "always",
    "almost",
    "together",
    "again",
    "deep",
    "bright",
    "narrow",
    "heavy",
    "gentle",
    "distant",
    "early",
]


def prose(seed: int, words: int = 90) -> str:
    """English words in sentences; two seeds share no run of five words but by chance."""
    draw = random.Random(seed)
    text = [draw.choice(WORDS) for _ in range(words)]
    for at in range(0, words, 12):
        text[at] = text[at].capitalize()
        text[min(at + 11, words - 1)] += "."
    return " ".join(text)


def jpeg(image: Image.Image, quality: int = 92) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def scene(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((160, 128), Image.Resampling.BICUBIC)


def held(data: bytes) -> bool:
    return is_heldout(content_id(data), HELDOUT)


class Pictures:
    """Pictures that were never seen before, on the side of the split that is asked for."""

    def __init__(self) -> None:
        self.seed = 0

    def new(self, heldout: bool = False) -> Image.Image:
        while True:
            self.seed += 1
            if held(jpeg(scene(self.seed))) == heldout:
                return scene(self.seed)

    @staticmethod
    def copy(image: Image.Image, heldout: bool) -> bytes:
        """Encoded again at another quality, on that side."""
        return next(d for q in range(88, 40, -1) if held(d := jpeg(image, q)) == heldout)


class Corpus:
    """`fates`: for each plant (the name of its picture or page) what becomes of it; None: it is kept."""

    def __init__(self, root: Path):
        self.root, self.fates = root, Counter()
        self.caps: list[dict] = []
        self.docs: list[dict] = []
        self.pictures = Pictures()
        (root / "images").mkdir(parents=True)

    def caption(self, name: str, data: bytes, text: str, fate: str | None = None) -> None:
        (self.root / "images" / name).write_bytes(data)
        self.caps.append({"image": name, "caption": text})
        self.fates[name, fate] += 1

    def document(
        self,
        name: str,
        text: str,
        images: list[tuple[str, bytes]] = (),
        fate: str | None = None,
        site: str = "site.org",
    ) -> None:
        """Text, pictures, text; each picture is a file and the address where it was found."""
        first, second = text[: len(text) // 2], text[len(text) // 2 :]
        for n, (_, data) in enumerate(images):
            (self.root / f"images/{name}.{n}.jpg").write_bytes(data)
        page = {
            "texts": [first, *(None for _ in images), second],
            "images": [None, *(f"images/{name}.{n}.jpg" for n in range(len(images))), None],
            "metadata": json.dumps([None, *({"src": url} for url, _ in images), None]),
            "general_metadata": json.dumps({"url": f"https://{site}/{name}"}),
        }
        self.docs.append(page)
        self.fates[name, fate] += 1

    def write(self) -> None:
        for name, rows in (("captions.jsonl", self.caps), ("interleaved.jsonl", self.docs)):
            (self.root / name).write_text("".join(json.dumps(r) + "\n" for r in rows))


LEAK = (
    "Which road did the old captain follow after the winter journey across the narrow stone bridge "
    "near the harbour"
)
FRENCH = (
    "Le vieux pont de pierre traverse la rivière et les enfants du village courent vers le marché. "
    "Nous avons mangé du pain et des pommes dans la cuisine pendant que la pluie tombait sur le jardin."
)


def corpus(root: Path) -> Corpus:
    c = Corpus(root)
    new = c.pictures.new
    for n in range(30):
        c.caption(f"plain{n}.jpg", jpeg(new(heldout=n % 5 == 0)), f"a plain caption number {n}")
        c.document(f"plain{n}", prose(n), [(f"https://img.org/{n}.jpg", jpeg(new()))] if n % 3 else [])
    # Copies.
    image = new()
    c.caption("same.jpg", jpeg(image), "one caption of one picture")
    c.caption("same.jpg", jpeg(image), "one  caption of one PICTURE", "copy of a document")
    for name, made in (
        ("again", lambda i: Pictures.copy(i, False)),
        ("mirror", lambda i: jpeg(ImageOps.mirror(i))),
    ):
        image = next(i for _ in range(99) if not held(made(i := new())))
        c.caption(f"{name}0.jpg", jpeg(image), f"the caption of {name}")
        c.caption(f"{name}1.jpg", made(image), f"the caption of {name}", "copy of an image")
        c.caption(
            f"{name}2.jpg",
            jpeg(image, 91) if not held(jpeg(image, 91)) else made(image),
            f"other words for {name}",
        )
    image = new(heldout=True)
    c.caption("held0.jpg", jpeg(image), "a picture that is held out")
    c.caption("held1.jpg", Pictures.copy(image, False), "and again for training", "copy of a held-out image")
    c.document("twin0", prose(100))
    c.document("twin1", prose(100), fate="copy of a document")
    near = prose(101).split()
    c.document("near", " ".join(near))  # which of the two stays is a matter of their ids
    near[40] = "lighthouse"
    c.document("near", " ".join(near), fate="nearly the text of another document")
    pair = [jpeg(new()), jpeg(new())]
    for n, fate in enumerate((None, "same images as a later document")):
        found = [(f"https://img.org/p{k}.jpg", data) for k, data in enumerate(pair)]
        c.document("pair", prose(110 + n), found, fate)
    # Pictures that come too often lose their places; a picture that comes ten times does not.
    banner, button = jpeg(new()), jpeg(new())
    for n in range(11):
        c.document(f"bytes{n}", prose(200 + n), [(f"https://img.org/b{n}.jpg", banner)])
        c.document(f"address{n}", prose(220 + n), [("https://ads.org/banner.jpg", jpeg(new()))])
    for n in range(10):
        c.document(f"ten{n}", prose(240 + n), [("https://img.org/ten.jpg", button)])
    # Texts.
    c.document(
        "pii", f"{prose(300)} Write to jane.doe@mail.example.com or call +49 30 1234567, host 8.8.8.8 now."
    )
    c.document("french", FRENCH, fate="language not wanted")
    c.document(
        "boilerplate",
        "\n".join(["Subscribe to our newsletter today.", prose(301, 12)] * 12),
        fate="repeated lines",
    )
    few = "The people of the village walked together across the old bridge in the evening."
    c.document("short", few, fate="too few words")
    # A benchmark's.
    image = next(i for _ in range(99) if not held(jpeg(i := new())))
    c.caption("leak.jpg", jpeg(image), "a picture of a benchmark", "benchmark image")
    c.document("leaktext", f"{LEAK} {prose(310)}", fate="benchmark text")
    (root.parent / "bench").mkdir()
    (root.parent / "bench/question.jpg").write_bytes(jpeg(image, 60))
    (root.parent / "bench/qa.json").write_text(
        json.dumps([{"question": LEAK.lower() + "?", "answer": "north"}])
    )
    # Opted out afterwards.
    c.document("page", prose(320), fate="opted out")
    c.document("domain", prose(321), fate="opted out", site="www.optout.org")
    c.document("image", prose(322), [("https://img.org/optout.jpg", jpeg(new()))])
    c.caption("byid.jpg", jpeg(new()), "a caption that is withdrawn by its id", "opted out")
    c.write()
    return c


def tag(sample: Sample) -> str:
    """The name of a plant."""
    name = (sample.media[0].url or "") if sample.kind == "caption" else (sample.url or "")
    return name.rsplit("/", 1)[-1]


RECIPE = {
    "name": "curated",
    "heldout": HELDOUT,
    "tasks": 3,
    "filters": {"personal_data": ["email", "ip", "phone"]},
    "dedup": {
        "documents": {"exact": True, "minhash": {}, "image_sets": 2},
        "images": {"max_url_count": 10, "max_bytes_count": 10, "near": {"distance": 10}},
    },
    "sources": [
        {"name": "caps", "kind": "captions", "path": "captions.jsonl"},
        {
            "name": "docs",
            "kind": "interleaved",
            "path": "interleaved.jsonl",
            "filters": {
                "languages": ["en"],
                "repetition": {},
                "document": {"min_words": 20},
                "personal_data": ["email", "ip", "phone"],
            },
        },
    ],
}


class Curated:
    """The finished dataset, and what every sample of its shards was called."""

    def __init__(self, root: Path):
        self.corpus = corpus(root / "in")
        self.directory = root / "data"
        build(BuildRecipe.model_validate(RECIPE), self.directory, root=root / "in")
        bench, page = root / "bench", root / "pairs.html"
        arguments = ["decontaminate", self.directory, "--benchmark", bench, "--out", page, "--remove"]
        assert main(["data", *map(str, arguments)]) == 0
        self.pairs = page.read_text()
        self.all = [
            Sample.from_row(row)
            for shard in read_manifest(self.directory).shards(format="arrow")
            for batch in record_batches(self.directory, shard)
            for row in batch.to_pylist()
        ]
        by_id = next(s.id for s in self.all if tag(s) == "byid.jpg")
        arguments = ["withdraw", self.directory, "--url", "http://site.org/page", "--domain", "optout.org"]
        arguments += ["--url", "https://img.org/optout.jpg", "--id", by_id]
        assert main(["data", *map(str, arguments)]) == 0
        self.manifest = read_manifest(self.directory)
        self.shown = list(samples(self.directory))
        self.view = View.open(self.directory, self.manifest)
        listed = [p.read_text().splitlines() for p in (self.directory / "dropped").glob("*.jsonl")]
        self.dropped = [json.loads(line) for lines in listed for line in lines]


@pytest.fixture(scope="module")
def curated(tmp_path_factory) -> Curated:
    return Curated(tmp_path_factory.mktemp("curate"))


def test_each_plant_meets_its_fate_and_all_else_is_kept(curated):
    names = {s.id: tag(s) for s in curated.all}
    lines = [json.loads(x) for x in (curated.corpus.root / "interleaved.jsonl").read_text().splitlines()]
    pages = [json.loads(page["general_metadata"])["url"].rsplit("/", 1)[-1] for page in lines]
    found = Counter((tag(s), None) for s in curated.shown)
    found.update((names[i], reason) for i, reason in curated.view.samples.items())
    found.update(
        (pages[int(d["where"].split()[1]) - 1], d["class"]) for d in curated.dropped if d["part"] == "sample"
    )
    assert found == curated.corpus.fates


def test_pictures_that_come_too_often_or_opted_out_leave_their_documents(curated):
    names = {s.id: tag(s) for s in curated.all}
    found = {names[i]: sorted(reasons.values()) for i, reasons in curated.view.images.items()}
    assert found == {
        **{f"bytes{n}": ["image too frequent"] for n in range(11)},
        **{f"address{n}": ["image address too frequent"] for n in range(11)},
        "image": ["opted out"],
    }
    for s in curated.shown:
        if tag(s) in found:
            assert not any(segment.type == "image" for segment in s.segments)
            assert s.image_bytes == (None,)
        elif tag(s).startswith("ten"):
            assert s.image_bytes[0] is not None


def test_personal_data_is_replaced_and_nothing_else_of_the_text(curated):
    (pii,) = [s for s in curated.shown if tag(s) == "pii"]
    assert "Write to [EMAIL] or call [PHONE], host [IP] now." in pii.text
    everything = json.dumps([vars(x) for s in curated.shown for x in s.segments])
    for secret in ("jane.doe", "1234567", "8.8.8.8"):
        assert secret not in everything
        assert secret not in (curated.directory / "report.html").read_text()
    plain = next(s for s in curated.shown if tag(s) == "plain3")
    assert plain.text.replace("\n", "") == prose(3)


def test_no_picture_and_no_near_copy_of_one_is_on_both_sides(curated):
    sides = {split: list(samples(curated.directory, split=split)) for split in ("train", "heldout")}
    ids = {k: {m.media_id for s in v for m in s.media} for k, v in sides.items()}
    assert not ids["train"] & ids["heldout"]
    assert min(map(len, ids.values())) > 5
    hashes = {
        side: [imagehash.phash(Image.open(io.BytesIO(b))) for s in shown for b in s.image_bytes if b]
        for side, shown in sides.items()
    }
    assert min(a - b for a in hashes["train"] for b in hashes["heldout"]) > 10


def test_the_books_balance_and_the_report_names_every_reason(curated):
    assert balanced(funnel(curated.manifest)) == []
    verify(curated.directory)
    report = (curated.directory / "report.html").read_text()
    page = json.loads((curated.directory / "funnel.json").read_text())
    reasons = {reason for _, reason in curated.corpus.fates if reason}
    reasons |= {"image too frequent", "image address too frequent"}
    for reason in reasons:
        assert reason in report, reason
        assert reason in json.dumps(page), reason
    assert "question.jpg" in curated.pairs
    assert "narrow stone bridge" in curated.pairs.lower()


# ---- what training sees ----
def stream(directory: Path, tokenizer, names: list[str], work: Path, length: int = 256) -> Stream:
    opened = Datasets.read([directory])
    sources = {name: opened.source(name, "train") for name in names}
    rendering = Rendering(
        tokenizer=tokenizer,
        image=ImageSpec(longest_edge=16, patch=8),
        image_tokens=4,
        loss_on="all_text",
        budget=Budget(tokens=length),
    )
    return Stream(
        sources=sources,
        sizes={name: sizes_of(source, rendering, work / "sizes") for name, source in sources.items()},
        shares=Shares(weights=dict.fromkeys(names, 1.0)),
        rendering=rendering,
        global_rows=4,
        micro_rows=4,
        rank=0,
        world_size=1,
        seed=0,
        data_digest=opened.digest,
        skipped_file=work / "skipped.jsonl",
    )


def skipped(work: Path) -> set[str]:
    """Ids of the samples that training wrote down as skipped."""
    return {json.loads(line)["sample_id"] for line in (work / "skipped.jsonl").read_text().splitlines()}


def test_training_sees_the_view_and_nothing_of_what_was_excluded(curated, tokenizer, tmp_path):
    opened = Datasets.read([curated.directory])
    shown = {s.id: s for s in samples(curated.directory, split="train")}
    seen = {}
    for name in ("caps", "docs"):
        source = opened.source(name, "train")
        for i in range(len(source)):
            sample, planned = source[i], source.without_pixels(i)
            assert sample == shown[sample.id]
            assert [(s.type, s.text, s.media) for s in planned.segments] == [
                (s.type, s.text, s.media) for s in sample.segments
            ]
            seen[sample.id] = sample
    assert seen == shown
    training = stream(curated.directory, tokenizer, ["caps", "docs"], tmp_path, length=1024)
    drawn, pictures, spans = Counter(), 0, 0
    while min((drawn[i] for i in shown), default=0) < 1:
        (batch,) = training.next()
        drawn.update({i for row in batch.sample_ids for i in row})
        pictures += len(batch.grids)
        spans += int((batch.input_ids == tokenizer.image_start_id).sum())
        assert sum(drawn.values()) < 3000, "some samples never come"
    training.close()
    assert set(drawn) == set(shown)
    assert pictures == spans > 0
    assert training.skipped == {}, "a document that lost a picture is whole without it"


# ---- pictures by address ----
class Site:
    """Serves `pages`: path to (status, type, body); counts what is asked."""

    def __init__(self, answer):
        self.hits = Counter()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                site.hits[self.path] += 1
                self._send(*answer(self.path, None))

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self._send(*answer(self.path, json.loads(body)))

            def _send(self, status, kind, body):
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:  # whoever asked was killed
                    pass

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.port}"


@pytest.fixture
def serve():
    started = []

    def start(answer) -> Site:
        started.append(Site(answer))
        return started[-1]

    yield start
    for site in started:
        site.server.shutdown()
        site.server.server_close()


def fetched(tmp_path: Path, monkeypatch, site: Site, missing: str, **more) -> Path:
    """A build that fetches from this machine, which no recipe can allow."""
    local = [ipaddress.ip_network("127.0.0.1/32")]
    monkeypatch.setattr(run, "FetchImages", lambda config, root: FetchImages(config, root, allow=local))
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
        "sources": [
            {"name": "caps", "kind": "captions", "path": "captions.jsonl"},
            {"name": "docs", "kind": "interleaved", "path": "interleaved.jsonl"},
        ],
    }
    build(BuildRecipe.model_validate(page), tmp_path / missing, root=tmp_path, bad_inputs="drop")
    verify(tmp_path / missing)
    assert balanced(funnel(read_manifest(tmp_path / missing))) == []
    return tmp_path / missing


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


# ---- synthetic samples ----
def test_a_build_that_is_killed_asks_no_question_twice_and_its_generator_can_be_withdrawn(tmp_path, serve):
    parents = tmp_path / "in"
    c = Corpus(parents)
    for n in range(24):
        c.caption(f"{n}.jpg", jpeg(scene(700 + n)), f"the first caption of picture number {n}")
    c.write()
    source = {"name": "caps", "kind": "captions", "path": "captions.jsonl"}
    build(BuildRecipe(name="parents", heldout=0, sources=[source]), tmp_path / "parents", root=parents)
    asked, answered, lock = Counter(), Counter(), threading.Lock()

    def answer(path, request):
        if request is None:
            return 200, "application/json", json.dumps({"data": [{"id": "tiny"}]}).encode()
        key = content_id(json.dumps(request))
        with lock:
            asked[key] += 1
            times, number = asked[key], len(asked)
        if times == 1 and number % 4 == 1:
            return (429, 500, 503)[number % 3], "text/plain", b"busy"
        if times == 1 and number % 8 == 2:
            return 200, "application/json", b"{garbage"
        time.sleep(0.1)
        with lock:
            answered[key] += 1
            text = f"A coloured pattern of soft squares, seen as number {len(answered)}."
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return 200, "application/json", json.dumps({"model": "tiny-1", "choices": [choice]}).encode()

    site = serve(answer)
    (tmp_path / "syn.yaml").write_text(
        f"""
name: syn
heldout: 0
tasks: 1
sources:
  - {{name: caps, kind: captions, path: in/captions.jsonl}}
  - {{name: syn, kind: synthetic, path: parents, task: caption, endpoint: '{site.url}/v1',
     concurrency: 2, chunk: 4}}
"""
    )
    command = [
        sys.executable,
        "-m",
        "data_pipeline.cli",
        "data",
        "build",
        tmp_path / "syn.yaml",
        "--out",
        tmp_path / "out",
    ]
    killed = subprocess.Popen(
        [*map(str, command)],
        cwd=REPOSITORY,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 60
    while sum(answered.values()) < 8 and time.monotonic() < end:
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "out/manifest.json").exists()
    time.sleep(0.3)  # what was under way at the server ends
    before = Counter(answered)
    with contextlib.closing(sqlite3.connect(tmp_path / "out/cache/syn.sqlite")) as db:
        (cached,) = db.execute("SELECT count(*) FROM answers").fetchone()
    assert 8 <= sum(before.values()) < 24
    done = subprocess.run(
        [*map(str, command)], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(answered) == 24
    # Only what was on its way from the server when the kill came is asked for again.
    twice = [key for key in before if answered[key] > 1]
    assert len(twice) == len(before) - cached <= 2, "an answer that was cached was asked for again"
    assert max(answered.values()) <= 2
    made = list(samples(tmp_path / "out", source="syn"))
    assert len(made) == len({s.synthetic["parent_ids"][0] for s in made}) == 24
    assert {s.synthetic["generator"] for s in made} == {"tiny"}
    verify(tmp_path / "out")
    found = withdraw(tmp_path / "out", generators=["tiny"])
    assert found.samples == 24
    assert {s.source for s in samples(tmp_path / "out")} == {"caps"}
    assert balanced(funnel(read_manifest(tmp_path / "out"))) == []
