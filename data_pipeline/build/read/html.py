"""Web pages: text blocks and images in reading order, from files. Nothing is fetched from the network."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.build.cut import cut_document
from data_pipeline.build.read.documents import document_item
from data_pipeline.build.read.dom import Image, blocks, read_page
from data_pipeline.build.read.dom_decode import decode
from data_pipeline.build.read.dom_image import UNREAD_SUFFIXES, from_data_uri
from data_pipeline.build.read.reading import (
    IMAGE_SUFFIXES,
    Fault,
    Folder,
    Item,
    Picture,
    begins_with,
    files_below,
    html_reference,
    read_document,
)
from data_pipeline.build.recipe import HtmlSource
from data_pipeline.sample import Media, content_id

SUFFIXES = (".html", ".htm", ".xhtml")


@dataclass(frozen=True)
class HtmlReader:
    source: HtmlSource
    path: Path
    folder: Folder
    heldout: float

    def inputs(self) -> list[Path]:
        tree = self.path if self.path.is_dir() else self.path.parent
        return [*self.units(), *files_below(tree, IMAGE_SUFFIXES)]

    def units(self) -> list[Path]:
        return files_below(self.path, SUFFIXES)

    def read(self, unit: Path) -> Iterator[Item]:
        file = self.folder.name(unit)
        page = read_document(unit, file)
        if isinstance(page, Fault):
            yield Item.failed(page)
            return
        binary = b"\0" in page[:4096] and not page.startswith((b"\xff\xfe", b"\xfe\xff"))
        if binary or b"<" not in page[:65536]:
            detail = f"not an HTML page: begins with {begins_with(page)}"
            fault = Fault(reason="unreadable file", detail=detail, bad=True, file=file, where="file")
            yield Item.failed(fault)
            return
        read = read_page(decode(page))
        runs = cut_document(
            blocks(read, lambda image: self._picture(image, unit, file)),
            max_chars=self.source.max_chars,
            max_images=self.source.max_images,
            heldout=self.heldout,
        )
        n = -1
        for n, run in enumerate(runs):
            yield document_item(
                run,
                source=self.source.name,
                file=file,
                where=f"part {n}",
                licence=self.source.license,
                min_chars=self.source.min_chars,
                step="read_html",
            )
        if n < 0:
            fault = Fault(
                reason="too little text", detail="no text and no image", bad=False, file=file, where="file"
            )
            yield Item.failed(fault)

    def _picture(self, image: Image, page: Path, file: str) -> Picture | Fault:
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
                found = self.folder.picture(reference, (page.parent,), file, where, image.alt)
            if not isinstance(found, Fault):
                return found
            faults.append(found)
        # Pages point to what was not saved with them as a matter of course: noted, not an alarm.
        return dataclasses.replace(faults[0], bad=False)

    def _embedded(self, uri: str, image: Image, file: str, where: str) -> Picture | Fault:
        data = from_data_uri(uri, self.folder.max_bytes)
        if isinstance(data, str):
            return _fault("embedded image", data, file, where)
        return Picture(Media(media_id=content_id(data), nbytes=len(data), alt=image.alt), data)


def _fault(reason: str, detail: str, file: str, where: str) -> Fault:
    return Fault(reason=reason, detail=detail, bad=False, file=file, where=where)
