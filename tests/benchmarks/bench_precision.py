"""Recall and false positives of the search for copies, over real pictures altered in known ways.

    python tests/benchmarks/bench_precision.py [--distance 10] [--similarity 0.75] [--folders F] [--out FILE]

Every picture is altered in each way and compared with its original (recall), and all pictures are compared
with one another (false positives): in each folder by itself, and in all together. `bar` says where both keep
their limits. The collection itself holds copies. Those that were found were looked at one by one;
KNOWN_COPIES lists the pairs that show one and the same photograph, and they are counted apart. All other
pairs are taken as unrelated, look-alikes too. `distance` and `similarity` were chosen on PHOTOGRAPHS; the
rule for pictures below 32 pixels, on those of the Gutenberg books.
"""

import argparse
import io
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from data_pipeline.build.dedup.clusters import likeness
from data_pipeline.build.images.phash import Thumbnail, mirrored_phash, perceptual_hash, thumbnail
from data_pipeline.build.read.reading import IMAGE_SUFFIXES

REALDATA = Path(__file__).parents[2].parent / "shared" / "realdata"
PHOTOGRAPHS = ("coco_cc", "skimage", "vqa_rad/images", "openstax_astronomy/images")
FOLDERS = (*PHOTOGRAPHS, "html_gutenberg")
_SETS = {  # what shows one and the same picture
    "openstax_astronomy/images/OSC_Astro_{}.jpg": (
        ("23_02_Explode", "29_01_Supernovae"),  # the same file under two names
        ("07_02_Jupiter", "11_01_Jupiter"),  # one photograph of Jupiter, cropped differently
        ("01_07_Fornax", "28_01_Abell2744"),  # one photograph of a cluster, in two gradings
    ),
    "html_gutenberg/15122/images/{}.jpg": tuple(  # each with its thumbnail
        (name, f"{name}-tb") for name in ("1", "s1a", "s1b", "s2a", "s2b", "s3", "s4")
    ),
    "html_gutenberg/16595/images/{}.png": (("front_lg", "front_sm"),),
    "html_gutenberg/17474/images/{}.png": (  # ornaments, printed and scanned again
        ("deco02", "deco06", "deco09"),
        ("deco03", "deco07", "deco08", "deco10"),
    ),
}
KNOWN_COPIES = {
    frozenset((form.format(a), form.format(b)))
    for form, sets in _SETS.items()
    for names in sets
    for a, b in itertools.combinations(names, 2)
}
Alter = Callable[[Image.Image], Image.Image]


def jpeg(quality: int) -> Alter:
    def alter(image: Image.Image) -> Image.Image:
        out = io.BytesIO()
        image.save(out, "JPEG", quality=quality)
        return Image.open(io.BytesIO(out.getvalue()))

    return alter


def scaled(x: float, y: float | None = None) -> Alter:
    y = x if y is None else y
    return lambda image: image.resize((max(16, round(image.width * x)), max(16, round(image.height * y))))


def cropped(left: float, top: float, right: float, bottom: float) -> Alter:
    """Fractions that are cut off."""
    return lambda i: i.crop(
        (
            round(i.width * left),
            round(i.height * top),
            round(i.width * (1 - right)),
            round(i.height * (1 - bottom)),
        )
    )


def overlaid(image: Image.Image) -> Image.Image:
    image = image.copy()
    place = (image.width // 20, image.height * 7 // 8)
    ImageDraw.Draw(image).text(
        place,
        "photo: example.org",
        "white",
        font_size=max(10, image.height // 18),
        stroke_width=1,
        stroke_fill="black",
    )
    return image


ALTERATIONS: dict[str, Alter] = {
    "JPEG 90": jpeg(90),
    "JPEG 50": jpeg(50),
    "JPEG 20": jpeg(20),
    "resize 0.5": scaled(0.5),
    "resize 0.3": scaled(0.3),
    "resize 1.5": scaled(1.5),
    "height 0.9": scaled(1, 0.9),
    "resize 0.5, JPEG 60": lambda i: jpeg(60)(scaled(0.5)(i)),
    "crop 5 %, all round": cropped(0.025, 0.025, 0.025, 0.025),
    "crop 5 %, one side": cropped(0, 0, 0.05, 0),
    "text overlay": overlaid,
    "mirror": ImageOps.mirror,
    "mirror, JPEG 60": lambda i: jpeg(60)(ImageOps.mirror(i)),
}
RE_ENCODING_AND_RESIZING = tuple(n for n in ALTERATIONS if n.startswith(("JPEG", "resize", "height")))
LEAST_RECALL = 0.95  # of each of these
MOST_FALSE = 1e-4  # of the pairs that are unrelated, exclusive


def pictures(folders: Sequence[str] = FOLDERS, every: int = 1) -> dict[str, Image.Image]:
    """Name -> picture, of each `every`-th file."""
    found = sorted(
        p for f in folders for p in (REALDATA / f).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES
    )
    result = {}
    for path in found[::every]:
        with Image.open(path) as image:
            result[path.relative_to(REALDATA).as_posix()] = image.convert("RGB")
    return result


@dataclass(frozen=True)
class Seen:
    """What the two searches know of a picture. Deduplication has the mirrored hash from the stored bits."""

    phash: int
    mirrored: int
    thumbnail: Thumbnail


@dataclass(frozen=True)
class Copies:
    """The rule under test: near hashes, straight or mirrored, and what `likeness` says of the thumbnails."""

    distance: int
    at_least: float
    exact_mirror: bool = False  # decontamination hashes the mirrored picture of the benchmark itself

    def __call__(self, a: Seen, b: Seen) -> bool:
        mirrored = b.mirrored if self.exact_mirror else mirrored_phash(b.phash)
        far = min((a.phash ^ b.phash).bit_count(), (a.phash ^ mirrored).bit_count())
        return far <= self.distance and (
            likeness(far, a.thumbnail, b.thumbnail, distance=self.distance, mirror=True) >= self.at_least
        )


def seen(image: Image.Image) -> Seen:
    return Seen(
        phash=perceptual_hash(image),
        mirrored=perceptual_hash(ImageOps.mirror(image)),
        thumbnail=thumbnail(image),
    )


def measure(images: dict[str, Image.Image], is_copy: Copies) -> dict:
    """The recall of each alteration, and the false positives."""
    originals = {name: seen(image) for name, image in images.items()}
    exact = replace(is_copy, exact_mirror=True)
    recall: dict[str, float] = {}
    decontamination: dict[str, float] = {}
    for name, alter in ALTERATIONS.items():
        altered = {n: seen(alter(image)) for n, image in images.items()}
        recall[name] = float(np.mean([is_copy(altered[n], originals[n]) for n in images]))
        decontamination[name] = float(np.mean([exact(altered[n], originals[n]) for n in images]))
    return {
        "pictures": len(images),
        **compare(originals, is_copy),
        "recall": recall,
        "recall_of_decontamination": decontamination,
    }


def compare(originals: dict[str, Seen], is_copy: Copies) -> dict:
    """Every picture with every other."""
    pairs = list(itertools.combinations(originals, 2))
    copies = [p for p in pairs if is_copy(originals[p[0]], originals[p[1]])]
    wrong = [p for p in copies if frozenset(p) not in KNOWN_COPIES]
    known = sum(frozenset(p) in KNOWN_COPIES for p in pairs)
    return {
        "unrelated_pairs": len(pairs) - known,
        "false_positives": [list(p) for p in wrong],
        "false_positive_rate": len(wrong) / max(1, len(pairs) - known),
        "known_copies": known,
        "known_copies_found": len(copies) - len(wrong),
    }


def keeps_bar(found: dict) -> bool:
    return found["false_positive_rate"] < MOST_FALSE and all(
        found[recall][name] >= LEAST_RECALL
        for recall in ("recall", "recall_of_decontamination")
        for name in RE_ENCODING_AND_RESIZING
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--distance", type=int, default=10)
    parser.add_argument("--similarity", type=float, default=0.75)
    parser.add_argument("--folders", nargs="+", default=FOLDERS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    groups = {folder: [folder] for folder in options.folders} | {"together": options.folders}
    is_copy = Copies(options.distance, options.similarity)
    result = {name: measure(pictures(folders), is_copy) for name, folders in groups.items()}
    result = {"bar": {name: keeps_bar(found) for name, found in result.items()}, **result}
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
