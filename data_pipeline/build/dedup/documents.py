"""Samples that are whole copies: equal text around equal images, or the same set of images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.build.dedup.corpus import Corpus
from data_pipeline.build.dedup.groups import Groups, key
from data_pipeline.build.dedup.normal import normal
from data_pipeline.view import Exclusion


def exact_exclusions(corpus: Corpus, work: Path) -> Iterator[Exclusion]:
    """Of samples with the same text and images in the same order, and the same roles, the first stays."""
    groups = Groups(work / "by-content")
    for row, _, found in corpus.rows(("kind", "segments", "media")):
        groups.add(key(*_content(found)), row)
    for group in groups.repeated():
        kept = corpus.row(int(group[0]), ("id",))["id"]
        for row in group[1:].tolist():
            yield corpus.exclude_row(row, "copy of a document", f"of sample {kept}")


def image_set_exclusions(corpus: Corpus, least: int, work: Path) -> Iterator[Exclusion]:
    """Of documents with one set of at least `least` images the latest stays, as in OBELICS.

    Later is: held out, then the later date, then (without dates, or on equal ones) the greater id.
    """
    groups = Groups(work / "by-image-set")
    for row, _, found in corpus.rows(("kind", "media")):
        first, _ = corpus.images_of(row)
        shown = {m["media_id"] for i, m in enumerate(found["media"]) if corpus.shown_images[first + i]}
        if found["kind"] == "interleaved" and len(shown) >= least:
            groups.add(key(*sorted(shown)), row)
    for group in groups.repeated():
        facts = [(row, corpus.row(row, ("id", "date"))) for row in group.tolist()]
        kept, latest = max(facts, key=lambda f: (corpus.is_heldout_row(f[0]), f[1]["date"] or "", f[1]["id"]))
        for row, _ in facts:
            if row != kept:
                yield corpus.exclude_row(row, "same images as a later document", f"sample {latest['id']}")


def _content(row: dict[str, Any]) -> Iterator[str]:
    """The sequence as it is compared: a dialogue's roles count, how text is split into segments does not."""
    words: list[str] = []
    yield "dialogue" if row["kind"] == "instruct" else "document"
    for segment in row["segments"]:
        if row["kind"] == "instruct":
            words.append(f"\n{segment['role']}:")
        if segment["text"]:
            words.append(segment["text"])
        if segment["media"] is not None:
            yield normal(" ".join(words))
            yield row["media"][segment["media"]]["media_id"]
            words = []
    yield normal(" ".join(words))
