"""A small corpus in which everything is planted, and what the real verbs make of it."""

import io
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.build.run import build
from data_pipeline.build.split import is_heldout
from data_pipeline.cli import main
from data_pipeline.image_spec import ImageSpec
from data_pipeline.manifest import read_manifest
from data_pipeline.sample import Sample, content_id
from data_pipeline.stream.budget import Budget
from data_pipeline.stream.datasets import Datasets
from data_pipeline.stream.loader import Stream
from data_pipeline.stream.measure import sizes_of
from data_pipeline.stream.rendering import Rendering
from data_pipeline.stream.shares import Shares
from data_pipeline.view import View, record_batches, samples

HELDOUT = 0.25

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
