"""Images that come too often, and copies of images: by address, by bytes and by what they look like."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.build.dedup.clusters import leaders
from data_pipeline.build.dedup.config import Images, NearImages
from data_pipeline.build.dedup.corpus import Corpus
from data_pipeline.build.dedup.groups import Groups, key
from data_pipeline.build.dedup.normal import normal_text
from data_pipeline.view import Exclusion

_KINDS = {"caption": "captions", "instruct": "dialogues", "interleaved": "documents", "pdf": "documents"}


def image_exclusions(corpus: Corpus, config: Images, work: Path) -> Iterator[Exclusion]:
    """First what is too frequent, everywhere; then copies, of which the earliest stays."""
    if config.max_url_count is not None:
        yield from _frequent(corpus, "url", config.max_url_count, work)
    if config.max_bytes_count is not None:
        yield from _frequent(corpus, "media_id", config.max_bytes_count, work)
    if config.near is None and config.max_phash_count is None:
        return
    near = config.near or NearImages(captions=None, dialogues=None)
    leader = leaders(corpus, near, work / "leaders")
    if config.max_phash_count is not None:
        yield from _frequent_pictures(corpus, leader, config.max_phash_count)
    if config.near is not None:
        yield from _copies(corpus, leader, config.near, work)


def _frequent(corpus: Corpus, column: str, most: int, work: Path) -> Iterator[Exclusion]:
    """Images whose address or bytes come in more than `most` places. Local paths are no addresses."""
    groups = Groups(work / f"by-{column}")
    for batch in corpus.media():
        for image, value in zip(batch.image.tolist(), getattr(batch, column), strict=True):
            if value and (column != "url" or value.startswith(("http://", "https://"))):
                groups.add(key(value), image)
    reason = "image address too frequent" if column == "url" else "image too frequent"
    for group in groups.repeated():
        if len(group) > most:
            yield from _exclude_all(corpus, group, reason, f"{len(group)} times, allowed are {most}")


def _frequent_pictures(corpus: Corpus, leader: np.ndarray, most: int) -> Iterator[Exclusion]:
    count = np.zeros(len(leader), np.uint32)
    for start in range(0, len(leader), 1 << 20):
        part = leader[start : start + (1 << 20)]
        np.add.at(count, part[part >= 0], 1)
    for first in np.flatnonzero(count > most):
        detail = f"{count[first]} copies, allowed are {most}"
        group = first + np.flatnonzero(leader[first:] == first)  # copies come after their leader
        yield from _exclude_all(corpus, group, "picture too frequent", detail)


def _exclude_all(corpus: Corpus, group: np.ndarray, reason: str, detail: str) -> Iterator[Exclusion]:
    for image in group.tolist():
        if corpus.shown_images[image]:  # an earlier number of the group may have taken it along
            yield corpus.exclude_image(image, reason, detail)


def _copies(corpus: Corpus, leader: np.ndarray, config: NearImages, work: Path) -> Iterator[Exclusion]:
    """Held-out pictures leave training whatever the kind; then each kind by its rule, the first stays."""
    groups = Groups(work / "by-picture")
    for image, found in _images(corpus):
        if not corpus.shown_images[image] or (lead := int(leader[image])) < 0:
            continue
        if corpus.is_heldout(lead) and not corpus.is_heldout(image):
            yield corpus.exclude_image(image, "copy of a held-out image", _told(corpus, lead))
            continue
        kind = _KINDS.get(found["kind"])
        rule = getattr(config, kind) if kind else None
        if rule is not None:
            text = (normal_text(found["segments"]),) if rule == "image_and_text" else ()
            groups.add(key(str(kind), str(lead), *text), image)
    for group in groups.repeated():
        first, *later = [i for i in group.tolist() if corpus.shown_images[i]] or [-1]
        kept_row = corpus.locate(first)[0] if later else -1
        for image in later:
            row, _ = corpus.locate(image)
            if row == kept_row or not corpus.shown_images[image]:
                continue  # a picture shown twice within a sample is no copy between samples
            document = corpus.row(row, ("kind",))["kind"] in ("interleaved", "pdf")
            if document and config.documents == "sample":
                yield corpus.exclude_row(row, "copy of an image", _told(corpus, first))
            else:
                yield corpus.exclude_image(image, "copy of an image", _told(corpus, first))


def _images(corpus: Corpus) -> Iterator[tuple[int, dict[str, Any]]]:
    """(image, the row of its sample) of every image, in order; the caller skips what is not shown."""
    for row, _, found in corpus.rows(("kind", "segments", "media")):
        first, count = corpus.images_of(row)
        for image in range(first, first + count):
            yield image, found


def _told(corpus: Corpus, image: int) -> str:
    sample, media_id = corpus.describe(image)
    return f"of image {media_id} in sample {sample}"
