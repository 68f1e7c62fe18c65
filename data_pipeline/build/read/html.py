"""Web pages: text blocks and images in reading order, from files. Nothing is fetched from the network."""

import dataclasses
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from data_pipeline.build.read.documents import document_item
from data_pipeline.build.read.dom import Image, blocks, read_page
from data_pipeline.build.read.dom_decode import decode
from data_pipeline.build.read.dom_image import UNREAD_SUFFIXES, from_data_uri
from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.reading import (
    IMAGE_SUFFIXES,
    Fault,
    Item,
    Picture,
    Stamp,
    begins_with,
    html_reference,
)

SUFFIXES = (".html", ".htm", ".xhtml")
MAX_PAGE_BYTES = 64 * 2**20
MAX_DOCUMENT_BYTES = 256 * 2**20  # of a page's images: a worker holds a document whole


@dataclass(frozen=True)
class HtmlReader:
    """Every page below `tree` is one document, of the source `name`."""

    name: str
    license: str | None
    tree: Tree

    def inputs(self) -> list[Stamp]:
        pages = [self.tree.stamp(name) for name in self.units()]
        return [*pages, *self.tree.listing(IMAGE_SUFFIXES)]

    def units(self) -> list[str]:
        return self.tree.files(SUFFIXES)

    def read(self, unit: str) -> Iterator[Item]:
        page = self.tree.read(unit, MAX_PAGE_BYTES)
        if isinstance(page, Fault):
            yield Item.failed(page)
            return
        binary = b"\0" in page[:4096] and not page.startswith((b"\xff\xfe", b"\xfe\xff"))
        if binary or b"<" not in page[:65536]:
            detail = f"not an HTML page: begins with {begins_with(page)}"
            fault = Fault(reason="unreadable file", detail=detail, bad=True, file=unit, where="file")
            yield Item.failed(fault)
            return
        held = 0

        def picture(image: Image) -> Picture | Fault:
            nonlocal held
            found = self._picture(image, unit)
            if not isinstance(found, Fault):
                held += len(found.data or b"")
                if held > MAX_DOCUMENT_BYTES:
                    detail = f"the page's images pass {MAX_DOCUMENT_BYTES:,} bytes"
                    return _fault("document too large", detail, unit, f"<img alt={image.alt!r}>")
            return found

        yield document_item(
            list(blocks(read_page(decode(page)), picture)),
            source=self.name,
            file=unit,
            where="file",
            licence=self.license,
            min_chars=1,  # the step that cuts applies the source's own limit
            step="read_html",
        )

    def _picture(self, image: Image, file: str) -> Picture | Fault:
        """The first of the image's references that lies beside the page, or is written out in it."""
        faults = []
        for url in image.urls:
            where = f"<img src={url[:80]!r}>"
            found = self._embedded(url, image, file, where) if url.startswith("data:") else None
            reference = html_reference(url)
            if found is None and reference.lower().endswith(UNREAD_SUFFIXES):
                detail = f"{reference[:80]!r} is no JPEG, PNG, WebP or GIF"
                found = _fault("unsupported image format", detail, file, where)
            elif found is None:
                found = self.tree.picture(reference, (posixpath.dirname(file),), file, where, image.alt)
            if not isinstance(found, Fault):
                return found
            faults.append(found)
        # Pages point to what was not saved with them as a matter of course: noted, not an alarm.
        return dataclasses.replace(faults[0], bad=False)

    def _embedded(self, uri: str, image: Image, file: str, where: str) -> Picture | Fault:
        data = from_data_uri(uri, self.tree.max_bytes)
        if isinstance(data, str):
            return _fault("embedded image", data, file, where)
        return self.tree.inline(data, None, file, where, image.alt)


def _fault(reason: str, detail: str, file: str, where: str) -> Fault:
    return Fault(reason=reason, detail=detail, bad=False, file=file, where=where)
