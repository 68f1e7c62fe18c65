"""PDF files: a sample per page, the rendered page first, then text and pictures by place, then its break."""

import io
import math
from collections.abc import Iterator

import pypdfium2 as pdfium
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.build.read.pdf_images import Embedded, Found
from data_pipeline.build.read.pdf_text import Box, Frame, Line, paragraphs
from data_pipeline.build.read.reading import Fault, Item, begins_with
from data_pipeline.sample import Media, Sample, Segment, content_id

SUFFIXES = (".pdf",)
MAX_FILE_BYTES = 256 * 2**20  # a document is held whole
_MAX_SIDE = 16_384  # pixels of a rendered page: a page may claim any shape
_MIN_SIDE = 8
# The format allows 14,400 points; the text layer of much larger pages takes memory by their width.
_MAX_POINTS = 1_000_000


class PdfOptions(BaseModel):
    """The keys of a source of PDF files, beside its path."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dpi: int = Field(96, ge=18, le=600)
    page_pixels: int = Field(2_000_000, ge=1, description="cap of a rendered page")
    max_pages: int = Field(2000, ge=1, description="pages read of one file; the rest is counted as dropped")
    keep_image_only: bool = Field(True, description="keep pages without text: the rendered page alone")
    embedded_images: bool = Field(False, description="also give the pictures of a page by themselves")
    page_seconds: int = Field(
        60, ge=1, le=3600, description="of CPU time that a page may take; one of more is counted as dropped"
    )
    max_images: int = Field(32, ge=1, description="embedded images of a page")
    image_pixels: int = Field(20_000_000, ge=1, description="cap of an embedded image")


def read_pdf_bytes(
    data: bytes,
    file: str,
    *,
    source: str,
    licence: str | None = None,
    options: PdfOptions | None = None,
    url: str | None = None,
    first: int = 0,
) -> Iterator[Item]:
    """A sample, or a fault, for each page of a PDF from number `first` on; `url` is where it came from,
    else `file`.

    One page is open at a time, so memory does not grow with the document.
    """
    # The specification allows a preamble of 1024 bytes before the header.
    if b"%PDF-" not in data[:1024]:
        detail = f"not a PDF: begins with {begins_with(data)}, expected %PDF-"
        yield Item.failed(_unreadable(detail, file, "file"))
        return
    try:
        document = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as e:
        if "password" in str(e).lower():
            detail = "the PDF is encrypted and asks for a password"
            fault = Fault(reason="encrypted PDF", detail=detail, bad=True, file=file, where="file")
            yield Item.failed(fault)
        else:
            yield Item.failed(_unreadable(f"PDF that cannot be opened (broken): {e}", file, "file"))
        return
    try:
        reading = _Document(document, file, url or file, source, licence, options or PdfOptions())
        for n in range(first, len(document)):
            yield reading.item(n)
    finally:
        document.close()


class _Document:
    def __init__(
        self,
        document: pdfium.PdfDocument,
        file: str,
        url: str,
        source: str,
        licence: str | None,
        options: PdfOptions,
    ):
        self.document, self.file, self.url = document, file, url
        self.source, self.licence, self.options = source, licence, options
        self.embedded = Embedded(options.image_pixels, options.max_images)

    def item(self, n: int) -> Item:
        where = f"page {n + 1}"
        if n >= self.options.max_pages:
            detail = f"the file has {len(self.document)} pages, max_pages is {self.options.max_pages}"
            return self._failed("beyond max_pages", detail, where)
        try:
            page = self.document[n]
        except pdfium.PdfiumError as e:
            return Item.failed(_unreadable(f"page that cannot be read: {e}", self.file, where))
        try:
            return self._page(page, n, where)
        except pdfium.PdfiumError as e:
            return Item.failed(_unreadable(f"page that cannot be read: {e}", self.file, where))
        finally:
            page.close()

    def _page(self, page: pdfium.PdfPage, n: int, where: str) -> Item:
        width, height = page.get_size()
        scale = _scale(width, height, self.options)
        if not scale or min(width, height) * scale < _MIN_SIDE:
            return self._failed("page of absurd size", f"{width:g} x {height:g} points", where)
        frame = Frame.of(page)
        blocks = paragraphs(page, frame)
        if not blocks and not self.options.keep_image_only:
            return self._failed("page without text", "no text layer", where)
        found = list(self.embedded.of(page, frame)) if self.options.embedded_images else []
        image = _render(page, scale)
        media = [Media(media_id=content_id(image), kind="page", nbytes=len(image), url=self.url, page=n + 1)]
        data = [image]
        cuts: list[Fault] = []
        segments = [Segment(type="image", media=0)]
        for element in by_place(blocks, found):
            if isinstance(element, Line):
                segments.append(Segment(type="text", text=element.text, bbox=_rounded(element.box)))
            elif element.data is None:
                cuts.append(self._fault(element.reason, element.detail, where))
            elif (key := content_id(element.data)) in {m.media_id for m in media}:
                cuts.append(self._fault("image repeated in the document", "shown before", where))
            else:
                segments.append(Segment(type="image", media=len(media), bbox=_rounded(element.box)))
                media.append(Media(media_id=key, nbytes=len(element.data), url=self.url, page=n + 1))
                data.append(element.data)
        sample = Sample(
            id=content_id(self.source, self.file, where, media[0].media_id, *(b.text for b in blocks)),
            kind="pdf",
            source=self.source,
            url=self.url,
            license=self.licence,
            segments=(*segments, Segment(type="page_break")),
            media=tuple(media),
            image_bytes=tuple(data),
        )
        return Item(file=self.file, where=where, sample=sample, cuts=tuple(cuts))

    def _failed(self, reason: str, detail: str, where: str) -> Item:
        return Item.failed(self._fault(reason, detail, where))

    def _fault(self, reason: str, detail: str, where: str) -> Fault:
        return Fault(reason=reason, detail=detail, bad=False, file=self.file, where=where)


def by_place(blocks: list[Line], pictures: list[Found]) -> list[Line | Found]:
    """Each picture before the first block that stands below its middle in its column; else at the end."""
    order: list[tuple[int, float, Line | Found]] = [(i, 2.0, b) for i, b in enumerate(blocks)]
    for picture in pictures:
        middle = (picture.box[1] + picture.box[3]) / 2
        column = [i for i, b in enumerate(blocks) if b.box and _share_column(b.box, picture.box)]
        beside = column or [i for i, b in enumerate(blocks) if b.box]
        below = next((i for i in beside if _middle(blocks[i]) > middle), None)
        at = below if below is not None else (beside[-1] + 1 if column else len(blocks))
        order.append((at, middle, picture))
    return [element for _, _, element in sorted(order, key=lambda o: o[:2])]


def _share_column(a: Box, b: Box) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > 0.3 * min(a[2] - a[0], b[2] - b[0])


def _middle(block: Line) -> float:
    assert block.box is not None
    return (block.box[1] + block.box[3]) / 2


def _rounded(box: Box | None) -> list[float] | None:
    return None if box is None else [round(v, 6) for v in box]


def _unreadable(detail: str, file: str, where: str) -> Fault:
    return Fault(reason="unreadable file", detail=detail, bad=True, file=file, where=where)


def _scale(width: float, height: float, options: PdfOptions) -> float:
    """Pixels per point such that no cap is passed, judged before anything is drawn; 0: not to be drawn."""
    if not (0 < width <= _MAX_POINTS and 0 < height <= _MAX_POINTS):
        return 0.0
    return min(
        options.dpi / 72, math.sqrt(options.page_pixels / (width * height)), _MAX_SIDE / max(width, height)
    )


def _render(page: pdfium.PdfPage, scale: float) -> bytes:
    bitmap = page.render(scale=scale, may_draw_forms=False)
    try:
        image: Image.Image = bitmap.to_pil().convert("RGB")
        out = io.BytesIO()
        image.save(out, "JPEG", quality=90, subsampling=0)
        return out.getvalue()
    finally:
        bitmap.close()
