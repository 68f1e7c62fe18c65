"""Crawls: the HTML records of WARC and ARC files as whole documents, their images out of the same crawl.

Nothing is fetched from the network. A web page comes as one sample, which a later step cuts; a PDF record as
a sample for each of its pages. Every crawl holds damage: it is counted, and only a file without any sound
record is a bad input.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast
from urllib.parse import urlsplit

from pydantic import Field

from data_pipeline.build.cut import HEADING
from data_pipeline.build.read.documents import lineage_of, too_little_text
from data_pipeline.build.read.dom import Image, Page, Text, read_page
from data_pipeline.build.read.dom_decode import decode
from data_pipeline.build.read.dom_facts import directives
from data_pipeline.build.read.dom_image import UNREAD_SUFFIXES, from_data_uri, sniff
from data_pipeline.build.read.files import NOT_FETCHED, Tree
from data_pipeline.build.read.pdf_apart import read_pdf
from data_pipeline.build.read.reading import Fault, Item, Picture, Stamp, as_json, begins_with
from data_pipeline.build.read.source import DocumentSource
from data_pipeline.build.read.warc_http import WarcRecord, parse
from data_pipeline.build.read.warc_index import Crawl, Place, build_index, kinds_of
from data_pipeline.build.read.warc_split import Broken, RawRecord, raw_records
from data_pipeline.sample import Media, Sample, Segment, content_id

SUFFIXES = (".warc", ".warc.gz", ".warc.zst", ".arc", ".arc.gz")
MAX_PAGE_BYTES = 16 * 2**20
CAPTION = "caption"  # role of a figure caption's segment; it follows its image
_KEEP_OUT = frozenset(("noindex", "none", "noai", "noml"))
_KEEP_IMAGES_OUT = frozenset(("noimageai", "noimageindex"))


class WarcSource(DocumentSource):
    """A crawl: every page is one document; images that no record holds are cut, or kept to be fetched."""

    kind: Literal["warc"] = "warc"
    records: tuple[Literal["html", "pdf"], ...] = Field(
        ("html",), min_length=1, description="which are read: web pages, PDF files (a sample for each page)"
    )
    honour_robots: bool = Field(
        True,
        description="drop what noindex, noai or noimageai (meta, X-Robots-Tag) or TDM-Reservation keep out",
    )


@dataclass(frozen=True)
class WarcReader:
    """`work`: where the index of images is kept, in a folder of the source's name.

    `keep_missing`: an image that the crawl does not hold stays as a reference (`Media.error` is NOT_FETCHED,
    no bytes) for the step that fetches; else it is cut. `texts_only`: no image and no PDF file is read.
    """

    source: WarcSource
    tree: Tree
    work: Path
    keep_missing: bool = False
    texts_only: bool = False
    _index: list[Path] = field(default_factory=list, compare=False)  # once it is known
    records: Counter[str] = field(default_factory=Counter, compare=False)  # by kind, of what `read` has read

    def inputs(self) -> list[Stamp]:
        only = self.tree.only
        return self.tree.listing(SUFFIXES) if only is None else [self.tree.stamp(only)]

    def units(self) -> list[str]:
        return self.tree.files(SUFFIXES)

    def prepare(self) -> None:
        """Build the index of images. Call it once before tasks start: else each builds it for itself."""
        if "html" in self.source.records:  # PDF files bring their images with them
            self.index()

    def index(self) -> Path:
        """Where images lie, by address: made, or taken as it is. Raises OSError of the file system."""
        if not self._index:
            self._index.append(
                build_index(self.tree, self.inputs(), self.work / self.source.name, self._max_bytes)
            )
        return self._index[0]

    def records_by_kind(self) -> Counter[str]:
        """Of the whole source, also of files that other tasks read."""
        return kinds_of(self.index())

    def read(self, unit: str) -> Iterator[Item]:
        try:
            if "html" in self.source.records and not self.texts_only:
                with contextlib.closing(Crawl(self.index(), self.tree, self.tree.max_bytes)) as crawl:
                    yield from self._items(unit, crawl)
            else:
                yield from self._items(unit, None)
        except OSError as e:
            yield _unreadable(unit, f"cannot be read: {e.strerror or e}")

    def web_records(self, unit: str) -> Iterator[tuple[RawRecord | Broken, WarcRecord]]:
        """Every record of a file, parsed; of PDF records `payload` is the file. Counted in `records`."""
        with self.tree.open(unit) as f:
            for raw in raw_records(f, self._max_bytes):
                record = WarcRecord("broken") if isinstance(raw, Broken) else parse(raw, self._max_bytes)
                self.records[record.kind] += 1
                yield raw, record

    @property
    def _max_bytes(self) -> int:
        return max(self.tree.max_bytes, MAX_PAGE_BYTES)

    def _items(self, unit: str, crawl: Crawl | None) -> Iterator[Item]:
        """`crawl` is there if web pages are read."""
        sound = False
        for raw, record in self.web_records(unit):
            sound = sound or isinstance(raw, RawRecord)
            where = f"record {raw.number} at byte {raw.offset}"

            def failed(reason: str, detail: str, where: str = where) -> Item:
                return Item.failed(Fault(reason=reason, detail=detail, bad=False, file=unit, where=where))

            if isinstance(raw, Broken):
                yield failed("broken record", raw.detail)
            elif record.kind == "malformed":
                yield failed("malformed record", (record.problem or ("", ""))[1])
            elif record.kind not in self.source.records or (record.kind == "pdf" and self.texts_only):
                continue
            elif record.payload is None:
                yield failed(*cast(tuple[str, str], record.problem))
            elif record.kind == "pdf":
                yield from self._pdf(record, record.payload, unit, where)
            elif len(record.payload) > MAX_PAGE_BYTES:
                yield failed("payload too large", f"a page of more than {MAX_PAGE_BYTES:,} bytes")
            else:
                yield self._page(record, unit, where, crawl)
        if not sound:
            yield _unreadable(unit, "holds no WARC or ARC record")

    def _pdf(self, record: WarcRecord, payload: bytes, unit: str, where: str) -> Iterator[Item]:
        if self.source.honour_robots and (said := _kept_out(record.headers)):
            reason = "opted out (TDM)" if said == "tdm" else "opted out (robots)"
            fault = Fault(reason=reason, detail=f"{record.url}: {said}", bad=False, file=unit, where=where)
            yield Item.failed(fault)
            return
        # Two records may hold one file: its pages are told apart by the place of their record.
        place = f"{unit}, {where}"
        host = urlsplit(record.url).hostname
        for item in read_pdf(
            payload, place, source=self.source.name, licence=self.source.license, url=record.url
        ):
            if item.fault is not None:
                yield Item.failed(dataclasses.replace(item.fault, bad=False))
            elif item.sample is not None:
                sample = dataclasses.replace(item.sample, domain=host, date=record.date)
                yield dataclasses.replace(item, sample=sample)

    def _page(self, record: WarcRecord, unit: str, where: str, crawl: Crawl | None) -> Item:
        text = decode(record.payload or b"", record.headers.get("content-type", ""))
        page = read_page(text, record.url)
        robots = page.facts.robots | directives(record.headers.get("x-robots-tag", ""))
        reserved = page.facts.tdm_reserved or record.headers.get("tdm-reservation", "").strip() == "1"
        if self.source.honour_robots and (reserved or robots & _KEEP_OUT):
            reason = "opted out (robots)" if robots & _KEEP_OUT else "opted out (TDM)"
            said = ", ".join(sorted(robots & _KEEP_OUT)) or "tdm-reservation: 1"
            fault = Fault(reason=reason, detail=f"{record.url}: {said}", bad=False, file=unit, where=where)
            return Item.failed(fault)
        finder = _Finder(
            crawl,
            unit,
            where,
            keep_missing=self.keep_missing,
            honour_robots=self.source.honour_robots,
            keep_out=bool(self.source.honour_robots and robots & _KEEP_IMAGES_OUT),
        )
        sample, cuts = _sample(page, finder, self.source, record, unit, where)
        said_of = {
            "title": page.facts.title,
            "canonical": page.facts.canonical,
            "robots": sorted(robots) or None,
            "tdm_reservation": 1 if reserved else None,
        }
        metadata = {k: v for k, v in said_of.items() if v is not None}
        language = page.facts.lang or record.headers.get("content-language", "").split(",")[0].strip()
        sample = dataclasses.replace(
            sample,
            url=record.url,
            domain=urlsplit(record.url).hostname,
            date=record.date,
            lang=language[:35].lower() or None,
            general_metadata=as_json(metadata) if metadata else None,
        )
        few = too_little_text(sample, self.source.min_chars, unit, where)
        return Item(file=unit, where=where, sample=sample, fault=few, cuts=cuts)


@dataclass(frozen=True)
class _Finder:
    """The pictures of one page."""

    crawl: Crawl | None
    file: str
    where: str
    keep_missing: bool
    honour_robots: bool
    keep_out: bool

    def __call__(self, image: Image) -> Picture | Fault:
        if self.crawl is None:
            return self._fault("image not read", "the texts alone are read")
        first = image.urls[0] if image.urls else ""
        if self.keep_out:
            return self._fault("opted out (robots)", f"the page says noimageai: {first[:200]}")
        for url in image.urls:
            if url.startswith("data:"):
                data = from_data_uri(url, self.crawl.max_bytes)
                return self._fault("embedded image", data) if isinstance(data, str) else _picture(data, image)
            if (place := self.crawl.find(url)) is not None:
                return self._fetched(self.crawl, url, place, image)
        if first.lower().split("?")[0].endswith(UNREAD_SUFFIXES):
            return self._fault("unsupported image format", f"{first[:200]!r} is no JPEG, PNG, WebP or GIF")
        if self.keep_missing and first.startswith(("http://", "https://")):
            media = Media(media_id=content_id(first), url=first, alt=image.alt, error=NOT_FETCHED)
            return Picture(media, None)
        return self._fault("image not in the crawl", f"no record of {first[:200]!r}")

    def _fetched(self, crawl: Crawl, url: str, place: Place, image: Image) -> Picture | Fault:
        record = crawl.fetch(place)
        if isinstance(record, str):
            return self._fault("unreadable image", f"{url[:200]!r} in {place.file}: {record}")
        if record.payload is None:
            reason, detail = record.problem or ("unreadable image", "no payload")
            reason = "image file too large" if reason == "payload too large" else reason
            return self._fault(reason, f"{url[:200]!r}: {detail}")
        if len(record.payload) > crawl.max_bytes:
            found = f"{url[:200]!r} has {len(record.payload):,} bytes"
            return self._fault("image file too large", f"{found}, images.max_bytes is {crawl.max_bytes:,}")
        if self.honour_robots and (said := _kept_out(record.headers)):
            return self._fault("opted out (robots)" if said != "tdm" else "opted out (TDM)", f"{url[:200]!r}")
        if sniff(record.payload) is None:
            return self._fault("not an image", f"{url[:200]!r} begins with {begins_with(record.payload)}")
        return _picture(record.payload, image, url, place)

    def _fault(self, reason: str, detail: str) -> Fault:
        # What pages point to lacks and breaks as a matter of course: noted, not an alarm.
        return Fault(reason=reason, detail=detail, bad=False, file=self.file, where=self.where)


def _unreadable(file: str, detail: str) -> Item:
    return Item.failed(Fault(reason="unreadable file", detail=detail, bad=True, file=file, where="file"))


def _kept_out(headers: Mapping[str, str]) -> str:
    """What the headers of an image or a PDF file say: "" where nothing keeps it out."""
    if headers.get("tdm-reservation", "").strip() == "1":
        return "tdm"
    return ", ".join(sorted(directives(headers.get("x-robots-tag", ""))))


def _picture(data: bytes, image: Image, url: str | None = None, place: Place | None = None) -> Picture:
    ref = None
    if place is not None:
        ref = {"path": place.file, "member": None, "offset": place.offset, "size": place.length}
    return Picture(
        Media(media_id=content_id(data), nbytes=len(data), url=url, alt=image.alt, source_ref=ref), data
    )


def _sample(
    page: Page, finder: _Finder, source: WarcSource, record: WarcRecord, file: str, where: str
) -> tuple[Sample, tuple[Fault, ...]]:
    """The whole page, and what was cut out of it. A picture that comes twice is stored once."""
    segments: list[Segment] = []
    pictures: dict[str, Picture] = {}
    numbers: dict[str, int] = {}
    cuts: list[Fault] = []
    for block in page.blocks:
        if isinstance(block, Text):
            role = HEADING if block.heading else CAPTION if block.caption else None
            segments.append(Segment(type="text", text=block.text, role=role))
            continue
        found = finder(block)
        if isinstance(found, Fault):
            cuts.append(found)
            continue
        key = found.media.media_id
        if key not in pictures:
            numbers[key] = len(pictures)
            pictures[key] = found
        segments.append(Segment(type="image", media=numbers[key]))
    media = tuple(p.media for p in pictures.values())
    content = [s.text if s.media is None else media[s.media].media_id for s in segments]
    sample = Sample(
        # A crawl may hold a page twice, in files that are copies of one another: the place tells them apart.
        id=content_id(source.name, file, where, record.url, record.date or "", *(c or "" for c in content)),
        kind="interleaved" if media else "text",
        source=source.name,
        license=source.license,
        segments=tuple(segments),
        media=media,
        image_bytes=tuple(p.data for p in pictures.values()),
        lineage=lineage_of(tuple(cuts), "read_warc"),
    )
    return sample, tuple(cuts)
