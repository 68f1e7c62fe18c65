"""Web pages: text blocks and images in reading order, from files. Nothing is fetched from the network."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from selectolax.lexbor import LexborHTMLParser, LexborNode

from data_pipeline.build.cut import Block, cut_document
from data_pipeline.build.read.documents import document_item
from data_pipeline.build.read.reading import (
    IMAGE_SUFFIXES,
    Fault,
    Folder,
    Item,
    begins_with,
    files_below,
    html_reference,
    read_document,
)
from data_pipeline.build.recipe import HtmlSource

SUFFIXES = (".html", ".htm", ".xhtml")
_SKIPPED = frozenset(
    [
        "script",
        "style",
        "noscript",
        "template",
        "title",
        "head",
        "nav",
        "footer",
        "form",
        "button",
        "select",
        "option",
        "textarea",
        "svg",
        "math",
        "iframe",
        "object",
        "audio",
        "video",
        "canvas",
        "map",
    ]
)
_HEADINGS = frozenset(("h1", "h2", "h3"))
_BLOCKS = _HEADINGS | frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "caption",
        "center",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "h4",
        "h5",
        "h6",
        "header",
        "hr",
        "html",
        "li",
        "main",
        "ol",
        "p",
        "pre",
        "section",
        "summary",
        "table",
        "tbody",
        "tfoot",
        "thead",
        "tr",
        "ul",
    ]
)
_SPACED = frozenset(("br", "td", "th"))
# Pages carry these as ornaments; that they are not read is noted, and no reason to stop.
_NO_PICTURES = (".svg", ".svgz", ".ico", ".bmp", ".tif", ".tiff", ".avif", ".heic")
_META_CHARSET = re.compile(rb"""<meta[^>]+charset=["']?([A-Za-z0-9_.:-]+)""", re.IGNORECASE)
_XML_CHARSET = re.compile(rb"""<\?xml[^>]+encoding=["']([A-Za-z0-9_.:-]+)""")


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
        if b"\0" in page[:4096] or b"<" not in page[:65536]:
            detail = f"not an HTML page: begins with {begins_with(page)}"
            fault = Fault(reason="unreadable file", detail=detail, bad=True, file=file, where="file")
            yield Item.failed(fault)
            return
        runs = cut_document(
            self._blocks(LexborHTMLParser(_decode(page)), unit, file),
            max_chars=self.source.max_chars,
            max_images=self.source.max_images,
            heldout=self.heldout,
        )
        n = -1
        for n, blocks in enumerate(runs):
            yield document_item(
                blocks,
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

    def _blocks(self, tree: LexborHTMLParser, page: Path, file: str) -> Iterator[Block]:
        text: list[str] = []
        heading = False

        def flush() -> Iterator[Block]:
            words = " ".join("".join(text).split())
            text.clear()
            if words:
                yield Block(text=words, heading=heading)

        for node, entering in _walk(tree.body or tree.root):
            tag = node.tag
            if tag == "-text":
                text.append(node.text_content or "")
            elif tag == "img" and entering:
                yield from flush()
                yield self._image(node, page, file)
            elif tag in _BLOCKS:
                yield from flush()
                heading = entering and tag in _HEADINGS
            elif tag in _SPACED:
                text.append(" ")
        yield from flush()

    def _image(self, node: LexborNode, page: Path, file: str) -> Block:
        reference = html_reference(node.attributes.get("src") or "")
        alt = " ".join((node.attributes.get("alt") or "").split())
        where = f"<img src={reference[:80]!r}>"
        if reference.lower().endswith(_NO_PICTURES):
            detail = f"{reference[:80]!r} is no JPEG, PNG, WebP or GIF"
            fault = Fault(reason="unsupported image format", detail=detail, bad=False, file=file, where=where)
            return Block(cut=fault)
        found = self.folder.picture(reference, (page.parent,), file, where, alt)
        # Pages point to what was not saved with them as a matter of course: noted, not an alarm.
        return (
            Block(cut=dataclasses.replace(found, bad=False))
            if isinstance(found, Fault)
            else Block(picture=found)
        )


def _walk(root: LexborNode | None) -> Iterator[tuple[LexborNode, bool]]:
    """Every node in document order: (node, True) on the way in, (element, False) on the way out.

    A stack, not recursion: pages nest thousands deep, by accident or by malice.
    """
    stack: list[tuple[LexborNode, bool]] = [] if root is None else [(root, True)]
    while stack:
        node, entering = stack.pop()
        if node.tag in _SKIPPED:
            continue
        yield node, entering
        if entering and node.is_element_node:
            stack.append((node, False))
            stack.extend((child, True) for child in reversed(list(node.iter(include_text=True))))


def _decode(page: bytes) -> str:
    """As the page declares it; UTF-8 where it declares nothing and is UTF-8; else Windows-1252."""
    declared = _XML_CHARSET.search(page[:1024]) or _META_CHARSET.search(page[:4096])
    for name in ("utf-8-sig", declared.group(1).decode() if declared else "cp1252"):
        try:
            return page.decode(name)
        except (UnicodeDecodeError, LookupError):
            continue
    return page.decode("cp1252", errors="replace")
