"""PDF files: one sample per page, the rendered page first, then its text in blocks, then a page break."""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pypdfium2 as pdfium

from data_pipeline.build.read.reading import Fault, Folder, Item, begins_with, files_below, read_document
from data_pipeline.build.recipe import PdfSource
from data_pipeline.sample import Media, Sample, Segment, content_id

SUFFIXES = (".pdf",)


@dataclass(frozen=True)
class PdfReader:
    source: PdfSource
    path: Path
    folder: Folder

    def inputs(self) -> list[Path]:
        return self.units()

    def units(self) -> list[Path]:
        return files_below(self.path, SUFFIXES)

    def read(self, unit: Path) -> Iterator[Item]:
        file = self.folder.name(unit)
        data = read_document(unit, file)
        if isinstance(data, Fault):
            yield Item.failed(data)
            return
        # The specification allows a preamble of 1024 bytes before the header.
        if b"%PDF-" not in data[:1024]:
            detail = f"not a PDF: begins with {begins_with(data)}, expected %PDF-"
            yield Item.failed(_unreadable(detail, file, "file"))
            return
        try:
            document = pdfium.PdfDocument(data)
        except pdfium.PdfiumError as e:
            yield Item.failed(
                _unreadable(f"PDF that cannot be opened (broken or encrypted): {e}", file, "file")
            )
            return
        try:
            for n in range(len(document)):
                yield self._page(document, n, file)
        finally:
            document.close()

    def _page(self, document: pdfium.PdfDocument, n: int, file: str) -> Item:
        where = f"page {n + 1}"
        if n >= self.source.max_pages:
            detail = f"the file has {len(document)} pages, max_pages is {self.source.max_pages}"
            fault = Fault(reason="beyond max_pages", detail=detail, bad=False, file=file, where=where)
            return Item.failed(fault)
        try:
            page = document[n]
            blocks = _blocks(page)
            if not blocks:
                fault = Fault(
                    reason="page without text", detail="no text layer", bad=False, file=file, where=where
                )
                return Item.failed(fault)
            image = _render(page, self.source.dpi, self.source.page_pixels)
        except pdfium.PdfiumError as e:
            return Item.failed(_unreadable(f"page that cannot be read: {e}", file, where))
        media = Media(media_id=content_id(image), kind="page", nbytes=len(image), url=file, page=n + 1)
        sample = Sample(
            id=content_id(self.source.name, file, where, media.media_id, *(b.text or "" for b in blocks)),
            kind="pdf",
            source=self.source.name,
            url=file,
            license=self.source.license,
            segments=(Segment(type="image", media=0), *blocks, Segment(type="page_break")),
            media=(media,),
            image_bytes=(image,),
        )
        return Item(file=file, where=where, sample=sample)


def _unreadable(detail: str, file: str, where: str) -> Fault:
    return Fault(reason="unreadable file", detail=detail, bad=True, file=file, where=where)


def _render(page: pdfium.PdfPage, dpi: int, max_pixels: int) -> bytes:
    """The page as JPEG. The cap holds before a pixel is drawn: a page may claim any size."""
    width, height = page.get_size()
    scale = min(dpi / 72, math.sqrt(max_pixels / max(width * height, 1)))
    image = page.render(scale=scale, may_draw_forms=False).to_pil().convert("RGB")
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90, subsampling=0)
    return out.getvalue()


def _blocks(page: pdfium.PdfPage) -> list[Segment]:
    """Paragraphs: lines of the text layer, in its own order, joined while they stand close together."""
    text_page = page.get_textpage()
    width, height = page.get_size()
    blocks: list[Segment] = []
    lines: list[str] = []
    box: list[float] | None = None
    for line, line_box in _lines(text_page):
        close = line_box is None or box is None or _continues(box, line_box)
        if lines and (not line or not close):
            blocks.append(_segment(lines, box, width, height))
            lines, box = [], None
        if line:
            lines.append(line)
            box = line_box if box is None else box if line_box is None else _union(box, line_box)
    if lines:
        blocks.append(_segment(lines, box, width, height))
    return blocks


def _lines(text_page: pdfium.PdfTextPage) -> Iterator[tuple[str, list[float] | None]]:
    """Each line with its box in points (left, bottom, right, top), where the text layer tells one."""
    start = 0
    for line in text_page.get_text_range().replace("\r\n", "\n").split("\n"):
        box: list[float] | None = None
        if words := " ".join(line.replace("\x00", "").replace("\ufffe", "-").split()):
            for i in range(text_page.count_rects(start, len(line))):
                rect = list(text_page.get_rect(i))
                box = rect if box is None else _union(box, rect)
        # Pdfium puts \r\n between lines.
        start += len(line) + 2
        yield words, box


def _continues(block: list[float], line: list[float]) -> bool:
    """The line stands below the block at less than one line's height, and in its column."""
    gap = block[1] - line[3]
    size = max(line[3] - line[1], 1.0)
    return -size < gap < size and line[0] < block[2] and line[2] > block[0]


def _union(a: list[float], b: list[float]) -> list[float]:
    return [min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])]


def _segment(lines: list[str], box: list[float] | None, width: float, height: float) -> Segment:
    bbox = None
    if box is not None and width > 0 and height > 0:
        fractions = (box[0] / width, 1 - box[3] / height, box[2] / width, 1 - box[1] / height)
        bbox = [min(max(f, 0.0), 1.0) for f in fractions]
    return Segment(type="text", text=" ".join(lines), bbox=bbox)
