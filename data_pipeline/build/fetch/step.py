"""The step that fills in the images which a source names by address only.

Documents wait in their order while the images of many of them, from many hosts, are under way.
"""

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from datatrove.data import Document

from data_pipeline.build.fetch.config import FetchConfig
from data_pipeline.build.fetch.fetcher import Fetcher
from data_pipeline.build.fetch.outcome import OPT_OUTS, Fetched, Record
from data_pipeline.build.images.cutting import without_images
from data_pipeline.build.steps import Cut, Dropped, Kept, Step
from data_pipeline.sample import Media, Sample

_DOCUMENTS = 256  # under way at one time,
_BYTES = 64 * 2**20  # ... with so much text and so many bytes of images that they hold already

Pending = dict[int, "Future[Record]"]


class FetchImages(Step):
    """Fetches each image that has an http(s) `url` and no bytes.

    `root`: what a relative `config.cache` counts from; `network`: as of `Fetcher`, for tests.
    """

    type = "fetch"
    name = "fetch images"

    def __init__(self, config: FetchConfig, root: str | Path, **network: Any):
        super().__init__()
        self.config = config
        self.root = Path(root)
        self.network = network

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        with Fetcher(self.config, self.root, **self.network) as self._fetcher:
            yield from super().run(self._ahead(data), rank, world_size)

    def _ahead(self, data: Iterable[Document]) -> Iterator[Document]:
        """The documents in their order, with `_pending` at what was begun for each when it came in."""
        waiting: deque[tuple[Document, Pending, int]] = deque()
        held = 0
        for doc in data:
            size = _size(doc)
            waiting.append((doc, self._begin(doc.metadata), size))
            held += size
            while waiting and (len(waiting) > _DOCUMENTS or held > _BYTES or _is_done(waiting[0][1])):
                first, self._pending, size = waiting.popleft()
                held -= size
                yield first
        while waiting:
            first, self._pending, _ = waiting.popleft()
            yield first

    def _begin(self, mark: dict[str, Any]) -> Pending:
        if mark.get("sample") is None or mark["fault"] is not None:
            return {}
        sample: Sample = mark["sample"]
        return {
            i: self._fetcher.submit(media.url)
            for i, (media, data) in enumerate(zip(sample.media, sample.image_bytes, strict=True))
            if data is None and media.url and media.url.lower().startswith(("http://", "https://"))
        }

    def judge(self, sample: Sample) -> Kept | Dropped:
        media, images = list(sample.media), list(sample.image_bytes)
        held = sum(len(b) for b in images if b)
        cuts = []
        for i, future in self._pending.items():
            found = self._take(media[i].url or "", future, held)
            self.stat_update(found.reason or "fetched")
            media[i], images[i] = _filled(media[i], found), found.data
            held += len(found.data or b"")
            if found.reason is not None:
                cuts.append(Cut(i, found.reason, found.detail))
        filled = dataclasses.replace(sample, media=tuple(media), image_bytes=tuple(images))
        match self.config.missing:
            case "drop_document" if cuts:
                return Dropped(cuts[0].reason, cuts[0].detail, media=cuts[0].media)
            case "drop_image":
                return without_images(filled, cuts, "fetch_images")
            case _:
                return Kept(filled)

    def _take(self, url: str, future: "Future[Record]", held: int) -> Fetched:
        record = future.result()
        if held + (record.nbytes or 0) > self.config.max_document_bytes:
            detail = f"its images are more than max_document_bytes, {self.config.max_document_bytes:,}"
            return Fetched(url=url, reason="fetch: document full", detail=detail, decision=record.decision)
        return self._fetcher.result(url, future)


def _filled(media: Media, found: Fetched) -> Media:
    """`opt_out`: True, its owner refuses; False, its owner was asked; None, nobody was."""
    opt_out = False if found.decision.startswith("allowed") else (found.reason in OPT_OUTS or None)
    if found.data is None:
        return dataclasses.replace(media, error=found.reason, opt_out=opt_out)
    return dataclasses.replace(
        media, media_id=found.media_id or "", nbytes=len(found.data), error=None, opt_out=opt_out
    )


def _is_done(pending: Pending) -> bool:
    return all(future.done() for future in pending.values())


def _size(doc: Document) -> int:
    sample: Sample | None = doc.metadata.get("sample")
    images = sum(len(b) for b in sample.image_bytes if b) if sample else 0
    return len(doc.text) + images
