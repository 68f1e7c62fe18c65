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
from datatrove.pipeline.base import PipelineStep

from data_pipeline.build.fetch.config import FetchConfig
from data_pipeline.build.fetch.fetcher import Fetcher
from data_pipeline.build.fetch.outcome import OPT_OUTS, Fetched, Record
from data_pipeline.build.read.documents import lineage_of
from data_pipeline.build.read.reading import Fault
from data_pipeline.build.steps import record
from data_pipeline.sample import Media, Sample

_DOCUMENTS = 256  # under way at one time,
_BYTES = 64 * 2**20  # ... with so much text and so many bytes of images that they hold already
_CUT_ONE = ("interleaved", "pdf")  # documents that go on without an image; other samples end with it

Pending = dict[int, "Future[Record]"]


class FetchImages(PipelineStep):
    """Fetches each image that has an http(s) `url` and no bytes. `network`: see `Fetcher`, for tests."""

    type = "fetch"
    name = "fetch images"

    def __init__(self, config: FetchConfig, root: str | Path, **network: Any):
        super().__init__()
        self.config = config
        self.root = Path(root)
        self.network = network

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        with Fetcher(self.config, self.root, **self.network) as fetcher:
            waiting: deque[tuple[Document, Pending, int]] = deque()
            held = 0
            for doc in data:
                size = _size(doc)
                waiting.append((doc, self._begin(doc.metadata, fetcher), size))
                held += size
                while waiting and (len(waiting) > _DOCUMENTS or held > _BYTES or _is_done(waiting[0][1])):
                    doc, pending, size = waiting.popleft()
                    held -= size
                    yield self._finish(doc, pending, fetcher)
            while waiting:
                doc, pending, _ = waiting.popleft()
                yield self._finish(doc, pending, fetcher)

    def _begin(self, mark: dict, fetcher: Fetcher) -> Pending:
        if mark.get("sample") is None or mark["fault"] is not None:
            return {}
        sample: Sample = mark["sample"]
        return {
            i: fetcher.submit(media.url)
            for i, (media, data) in enumerate(zip(sample.media, sample.image_bytes, strict=True))
            if data is None and media.url and media.url.lower().startswith(("http://", "https://"))
        }

    def _finish(self, doc: Document, pending: Pending, fetcher: Fetcher) -> Document:
        mark = doc.metadata
        if not pending:
            return doc
        sample: Sample = mark["sample"]
        media, images = list(sample.media), list(sample.image_bytes)
        faults: dict[int, Fault] = {}
        held = sum(len(b) for b in images if b)
        for i, future in pending.items():
            found = self._take(media[i].url or "", future, held, fetcher)
            self.stat_update(found.reason or "fetched")
            media[i] = _filled(media[i], found)
            images[i] = found.data
            held += len(found.data or b"")
            if found.reason is not None:
                faults[i] = _fault(found, mark)
        filled = dataclasses.replace(sample, media=tuple(media), image_bytes=tuple(images))
        self._settle(mark, filled, faults)
        return doc

    def _take(self, url: str, future: "Future[Record]", held: int, fetcher: Fetcher) -> Fetched:
        found = future.result()
        if held + (found.nbytes or 0) > self.config.max_document_bytes:
            detail = f"images of more than max_document_bytes, {self.config.max_document_bytes:,}"
            return Fetched(url=url, reason="fetch: document full", detail=detail, decision=found.decision)
        return fetcher.result(url, future)

    def _settle(self, mark: dict, sample: Sample, faults: dict[int, Fault]) -> None:
        """What becomes of the sample, given the images that could not be had."""
        first = next(iter(faults.values()), None)
        if first is None or self.config.missing == "keep_reference":
            mark["sample"] = sample
            record(mark, self.name)
        elif self.config.missing == "drop_document" or sample.kind not in _CUT_ONE:
            mark["fault"] = first
            mark["at"] = self.name
        else:
            mark["sample"] = _without(sample, faults)
            mark["cuts"] = (*mark["cuts"], *faults.values())
            if mark["sample"].segments:
                record(mark, self.name)
            else:
                mark["fault"] = dataclasses.replace(first, reason="no image left")
                mark["at"] = self.name


def _filled(media: Media, found: Fetched) -> Media:
    opt_out = False if found.decision.startswith("allowed") else (found.reason in OPT_OUTS or None)
    if found.data is None:
        return dataclasses.replace(media, error=found.reason, opt_out=opt_out)
    return dataclasses.replace(
        media, media_id=found.media_id or "", nbytes=len(found.data), error=None, opt_out=opt_out
    )


def _fault(found: Fetched, mark: dict) -> Fault:
    where = mark["where"] if found.url == mark["file"] else f"{mark['file']}, {mark['where']}"
    return Fault(reason=found.reason or "", detail=found.detail, bad=False, file=found.url, where=where)


def _without(sample: Sample, faults: dict[int, Fault]) -> Sample:
    """The sample without these images: the others are renumbered, the text stays."""
    kept = [i for i in range(len(sample.media)) if i not in faults]
    number = {old: new for new, old in enumerate(kept)}
    return dataclasses.replace(
        sample,
        kind="text" if sample.kind == "interleaved" and not kept else sample.kind,
        segments=tuple(
            s if s.media is None else dataclasses.replace(s, media=number[s.media])
            for s in sample.segments
            if s.media is None or s.media in number
        ),
        media=tuple(sample.media[i] for i in kept),
        image_bytes=tuple(sample.image_bytes[i] for i in kept),
        lineage=(*(sample.lineage or ()), *(lineage_of(tuple(faults.values()), "fetch_images") or ()))
        or None,
    )


def _is_done(pending: Pending) -> bool:
    return all(future.done() for future in pending.values())


def _size(doc: Document) -> int:
    sample: Sample | None = doc.metadata.get("sample")
    images = sum(len(b) for b in sample.image_bytes if b) if sample else 0
    return len(doc.text) + images
