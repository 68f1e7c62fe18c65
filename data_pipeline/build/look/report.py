"""The report of a build: a static page, funnel.json and the data card, made of the dataset's directory alone.

The page needs no network and runs nothing; what it shows was written by others and is escaped. It names no
date and no machine, so that the same dataset gives the same bytes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from data_pipeline.build.look import published, wording
from data_pipeline.build.look.card import card
from data_pipeline.build.look.distributions import QUANTILES, Distributions, columns, distributions
from data_pipeline.build.look.draw import in_turn, mixed, places_of, rows, seen_places
from data_pipeline.build.look.examples import Example, Thumbnail, beginning, read_examples, thumbnail
from data_pipeline.build.look.funnel import UNITS, balanced, funnel, kept
from data_pipeline.manifest import Manifest, commit, read_manifest, write_json
from data_pipeline.sample import Sample
from data_pipeline.view import View, read_exclusions

KEPT = 12
SIDE = 192  # pixels of a kept example's picture
EXCLUDED = 3  # examples of one step and reason
MAX_PICTURE_CHARS = 1_500_000  # base64 of all examples together: the page stays below 3 MB


def write_report(directory: Path) -> None:
    """Write report.html, funnel.json and card.md into the dataset; the same bytes on every run.

    Raises DataError where the directory holds no dataset, or a file that its manifest names was altered.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    view = View.open(directory, manifest)
    found = funnel(manifest)
    facts = distributions(directory, manifest, view)
    pages = {
        "report.html": render(directory, manifest, view, found, facts),
        "card.md": card(manifest, found, facts),
    }
    write_json(directory / "funnel.json", found)
    for name, text in pages.items():
        with commit(directory / name) as f:
            f.write(text.encode())


@dataclass(frozen=True)
class Shown:
    """A sample to look at. `why` says why it is left out; None for one that is kept."""

    id: str
    source: str
    kind: str
    split: str
    url: str | None
    text: str
    images: tuple[Thumbnail, ...]
    more_images: int
    why: str | None = None


def render(
    directory: Path, manifest: Manifest, view: View, found: dict[str, Any], facts: Distributions
) -> str:
    dropped = read_examples(directory, len(manifest.tasks))
    kept_examples = list(_kept(directory, manifest, view))
    excluded = list(_excluded(directory, manifest))
    budget = MAX_PICTURE_CHARS - sum(_weight(e) for e in kept_examples)
    shown_dropped, budget = _within(dropped, budget)
    shown_excluded, _ = _within(excluded, budget)
    arrow = manifest.shards(format="arrow")
    chars = found["total"]["steps"][-1]["text_chars"]["out"]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=wording.count, compact=wording.compact, percent=wording.percent, number=wording.number
    )
    environment.globals.update(kept_share=kept, UNITS=UNITS, CHARS_PER_TOKEN=wording.CHARS_PER_TOKEN)
    return environment.get_template("report.html.j2").render(
        manifest=manifest,
        funnel=found,
        faults=balanced(found),
        facts=facts,
        columns=columns(directory),
        quantiles=[f"{q:.0%}" for q in QUANTILES],
        chars=chars,
        tokens=chars / wording.CHARS_PER_TOKEN,
        stored=wording.size(sum(s.nbytes for s in manifest.shards())),
        heldout=sum(s.samples for s in arrow if s.split == "heldout")
        - sum(manifest.excluded(s, "heldout", "samples") for s in manifest.funnel),
        kept=kept_examples,
        dropped=_by_reason(shown_dropped),
        left_out=len(dropped) + len(excluded) - len(shown_dropped) - len(shown_excluded),
        excluded=shown_excluded,
        published=published.beside(found["total"]),
        images_per_document=published.IMAGES_PER_DOCUMENT,
        recipe=wording.recipe_yaml(manifest.recipe),
    )


def _kept(directory: Path, manifest: Manifest, view: View) -> Iterator[Shown]:
    shards = manifest.shards(format="arrow")
    drawn = seen_places(directory, shards, view, most=8 * KEPT, seed="report")
    places = {source: mixed(directory, of) for source, of in drawn.items()}
    for shard, row in rows(directory, in_turn(places, KEPT)):
        if (sample := view.apply(Sample.from_row(row))) is not None:
            yield _shown(sample, shard.split, SIDE)


def _excluded(directory: Path, manifest: Manifest) -> Iterator[Shown]:
    """A few of what each step excluded, for each reason; they lie in the shards as they were."""
    wanted: dict[str, tuple[str, str | None]] = {}
    for record in manifest.exclusions:
        taken: dict[str, int] = {}
        for e in read_exclusions(directory, record):
            if taken.get(e.reason, 0) < EXCLUDED and e.id not in wanted:
                taken[e.reason] = taken.get(e.reason, 0) + 1
                wanted[e.id] = f"{record.step}: {e.reason}{f' ({e.detail})' if e.detail else ''}", e.media_id
    if not wanted:
        return
    places = places_of(directory, manifest.shards(format="arrow"), wanted)
    for shard, row in rows(directory, places):
        why, media_id = wanted[row["id"]]
        yield _shown(Sample.from_row(row), shard.split, 96, why=why, media_id=media_id)


def _shown(
    sample: Sample, split: str, side: int, why: str | None = None, media_id: str | None = None
) -> Shown:
    """`media_id`: the one image that it is about; the text is then not shown."""
    pictures = [
        data
        for m, data in zip(sample.media, sample.image_bytes, strict=True)
        if data is not None and media_id in (None, m.media_id)
    ]
    return Shown(
        id=sample.id,
        source=sample.source,
        kind=sample.kind if media_id is None else f"one image of {sample.kind}",
        split=split,
        url=sample.url,
        text=beginning(sample) if media_id is None else "",
        images=tuple(thumbnail(data, side) for data in pictures[:2]),
        more_images=max(0, len(pictures) - 2),
        why=why,
    )


def _weight(example: Example | Shown) -> int:
    return sum(len(t.jpeg or "") for t in example.images)


def _within(examples: Iterable[Any], budget: int) -> tuple[list[Any], int]:
    """The first examples whose pictures fit the budget together, and what is left of it."""
    chosen = []
    for example in examples:
        if (weight := _weight(example)) <= budget:
            chosen.append(example)
            budget -= weight
    return chosen, budget


def _by_reason(examples: Iterable[Example]) -> list[tuple[str, str, list[Example]]]:
    """(part, reason, examples), the same reason of all sources together."""
    groups: dict[tuple[str, str], list[Example]] = {}
    for e in examples:
        groups.setdefault((e.part, e.reason), []).append(e)
    return [(part, reason, group) for (part, reason), group in sorted(groups.items())]
