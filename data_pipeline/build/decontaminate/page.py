"""One static page of a report: each pair side by side, the words in common marked. No scripts."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from data_pipeline.build.decontaminate.benchmark import Picture, read_benchmark
from data_pipeline.build.decontaminate.search import Report
from data_pipeline.build.decontaminate.texts import Span
from data_pipeline.build.dedup.clusters import opened

_SIDE = 240  # pixels of a shown picture
_AROUND = 200  # characters shown before and after what is marked


@dataclass(frozen=True)
class ImagePair:
    sample: str
    media_id: str
    split: str
    ours: str | None  # data URI
    theirs: str | None
    name: str
    how: str


@dataclass(frozen=True)
class TextPair:
    sample: str
    split: str
    name: str
    how: str
    ours: list[tuple[str, bool]]  # (text, whether it is marked)
    theirs: list[tuple[str, bool]]


def page(report: Report) -> str:
    """HTML with at most `config.shown` pairs of each kind."""
    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    return env.get_template("page.html.j2").render(
        report=report, images=_image_pairs(report), texts=_text_pairs(report)
    )


def marked(text: str, spans: Sequence[Span], around: int = _AROUND) -> list[tuple[str, bool]]:
    """The text cut into marked and plain pieces; plain text far from any mark is left out."""
    pieces: list[tuple[str, bool]] = []
    before = 0
    for k, (start, end) in enumerate(spans):
        gap = text[before:start]
        if k == 0 and len(gap) > around:
            gap = f"… {gap[-around:]}"
        elif len(gap) > 2 * around:
            gap = f"{gap[:around]} … {gap[-around:]}"
        pieces += [(gap, False), (text[start:end], True)]
        before = end
    rest = text[before:]
    pieces.append((rest if len(rest) <= around else f"{rest[:around]} …", False))
    return [p for p in pieces if p[0]]


def _image_pairs(report: Report) -> list[ImagePair]:
    hits = report.images[: report.config.shown]
    wanted = {report.picture_names[h.picture] for h in hits}
    theirs = {
        p.name: _shown(p.data)
        for p in (read_benchmark(report.directory, report.config) if wanted else ())
        if isinstance(p, Picture) and p.name in wanted
    }
    pairs = []
    for hit in hits:
        sample, media_id = report.corpus.describe(hit.image)
        how = f"by {hit.how}"
        if hit.how == "perceptual hash":
            how += f": {hit.distance} of 64 bits differ, similarity {hit.similarity:.2f}"
        elif hit.how == "embedding":
            how += f": cosine {hit.similarity:.2f}"
        name = report.picture_names[hit.picture]
        split = "heldout" if report.corpus.is_heldout(hit.image) else "train"
        ours = _shown(report.corpus.picture(hit.image))
        pairs.append(ImagePair(sample, media_id, split, ours, theirs.get(name), name, how))
    return pairs


def _text_pairs(report: Report) -> list[TextPair]:
    pairs = []
    for hit in report.texts[: report.config.shown]:
        row = report.corpus.row(hit.row, ("id", "segments"))
        item = report.item_list[hit.item]
        text = "\n".join(s["text"] for s in row["segments"] if s["text"])
        how = f"{hit.shared} n-grams, {hit.coverage:.0%} of the item" if hit.shared else "word for word"
        split = "heldout" if report.corpus.is_heldout_row(hit.row) else "train"
        pairs.append(
            TextPair(
                row["id"], split, item.name, how, marked(text, hit.spans), marked(item.text, hit.item_spans)
            )
        )
    return pairs


def _shown(data: bytes | None) -> str | None:
    image = opened(data, _SIDE)
    if image is None:
        return None
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.thumbnail((_SIDE, _SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
