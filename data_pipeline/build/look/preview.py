"""One static HTML page with samples as training sees them: images and text in order, roles and turns.

What is shown was written by others: everything is escaped, and the page may load and run nothing.
"""

import base64
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_pipeline.build.look.draw import Place, in_turn, places_of, rows, seen_places
from data_pipeline.build.look.wording import number
from data_pipeline.build.write.tar import SUFFIX_OF
from data_pipeline.errors import ConfigError, nearest
from data_pipeline.manifest import Shard, read_manifest
from data_pipeline.sample import Media, Sample
from data_pipeline.view import View


@dataclass(frozen=True)
class Part:
    """One segment as it is shown. `uri` is an image's content; `notes` are what is known of it."""

    type: str
    text: str | None
    role: str | None
    turn: int | None
    uri: str | None = None
    notes: tuple[str, ...] = ()


def preview(
    directory: Path,
    *,
    n: int = 20,
    seed: int = 0,
    split: str | None = None,
    source: str | None = None,
    excluded: bool = False,
) -> str:
    """The page, with `n` samples drawn evenly over the sources, as the dataset shows them.

    With `excluded`, samples that are left out or have lost images instead, as they lie in the shards.
    Raises ConfigError for an unknown source.
    """
    manifest = read_manifest(directory)
    if source is not None and source not in manifest.funnel:
        raise ConfigError(
            f"no source '{source}' in {directory}{nearest(source, manifest.funnel)}\n"
            f"  Sources: {', '.join(sorted(manifest.funnel))}"
        )
    view = View.open(directory, manifest)
    shards = manifest.shards(format="arrow", split=split, source=source)
    if excluded:
        places = _excluded_places(directory, shards, view, seed)
    else:
        places = seen_places(directory, shards, view, most=n, seed=f"preview:{seed}")
    shown = []
    for shard, row in rows(directory, in_turn(places, n)):
        sample = Sample.from_row(row)
        seen = sample if excluded else view.apply(sample)
        assert seen is not None, "a place of the view"
        shown.append(_shown(seen, shard, view))
    # Only this one folder's template is ever loaded; autoescape is on for all of it.
    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    return env.get_template("preview.html.j2").render(manifest=manifest, samples=shown, excluded=excluded)


def _excluded_places(directory: Path, shards: list[Shard], view: View, seed: int) -> dict[str, list[Place]]:
    found: dict[str, list[Place]] = {}
    for place in places_of(directory, shards, {*view.samples, *view.images}):
        found.setdefault(place[0].source, []).append(place)
    for source, places in found.items():
        random.Random(f"preview:{seed}:{source}").shuffle(places)
    return found


def _shown(sample: Sample, shard: Shard, view: View) -> dict[str, Any]:
    gone = view.images.get(sample.id, {})
    return {
        "sample": sample,
        "split": shard.split,
        "parts": [_part(sample, i, gone) for i in range(len(sample.segments))],
        "why": view.samples.get(sample.id),
        "scores": _scores(sample.scores),
        "synthetic": {k: v for k, v in (sample.synthetic or {}).items() if v not in (None, [], "")},
    }


def _part(sample: Sample, i: int, gone: dict[str, str]) -> Part:
    s = sample.segments[i]
    if s.type != "image" or s.media is None:
        notes = () if s.sim is None else (f"similarity {number(s.sim)}",)
        return Part(s.type, s.text, s.role, s.turn, notes=notes)
    media, data = sample.media[s.media], sample.image_bytes[s.media]
    stored = data is not None and media.mime in SUFFIX_OF
    uri = f"data:{media.mime};base64,{base64.b64encode(data).decode()}" if stored and data else None
    return Part(s.type, media.alt, s.role, s.turn, uri, tuple(_notes(media, gone)))


def _notes(media: Media, gone: dict[str, str]) -> list[str]:
    found = [f"{media.width}x{media.height}" if media.width else None, media.url, media.license]
    if media.media_id in gone:
        found.append(f"excluded: {gone[media.media_id]}")
    found += [media.error, "opted out" if media.opt_out else None, *_scores(media.scores)]
    return [note for note in found if note]


def _scores(scores: dict[str, float] | None) -> list[str]:
    return [f"{name} {number(value)}" for name, value in sorted((scores or {}).items())]
