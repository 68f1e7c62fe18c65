"""Raw documents about scenes, HTML pages and PDF files, so that the demo reads what a user would bring."""

import ctypes
import io
import random
import re
from html import escape
from pathlib import Path

import pypdfium2 as pdfium
import pypdfium2.raw as raw
from PIL import Image

from data_pipeline.build.scenes.draw import Scene

_OPENINGS = (
    "These pictures were drawn for a small study of shapes.",
    "The plates below show two shapes each.",
    "Every figure on this page stands on a plain light ground.",
    "This page collects a few simple drawings.",
)
_ASIDES = (
    "Nothing else is in the picture.",
    "The shapes do not touch one another.",
    "Compare it with the picture before.",
    "The corners stay free of any frame.",
)
_PAGE = (200.0, 240.0)  # points
_FIRST_PAGE, _FIRST_PDF = 1_000_000, 2_000_000  # scenes of documents are apart from those of other sources


def write_documents(directory: Path, pages: int, pdfs: int, seed: int) -> tuple[Path, Path]:
    """Write `pages` HTML pages below directory/pages and `pdfs` files below directory/pdf.

    The same arguments write the same documents. Returns the two folders.
    """
    html, pdf = directory / "pages", directory / "pdf"
    (html / "images").mkdir(parents=True, exist_ok=True)
    pdf.mkdir(parents=True, exist_ok=True)
    for n in range(pages):
        (html / f"page-{n:04d}.html").write_text(_write_page(html, n, seed), encoding="utf-8")
    for n in range(pdfs):
        _write_pdf(pdf / f"sheet-{n:04d}.pdf", n, seed)
    return html, pdf


def _write_page(directory: Path, n: int, seed: int) -> str:
    rng = random.Random(f"page:{seed}:{n}")
    title = f"Drawings, sheet {n}"
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{rng.choice(_OPENINGS)}</p>"]
    for k in range(rng.randint(2, 4)):
        scene = Scene.at(seed, _FIRST_PAGE + 8 * n + k)
        name = f"scene-{n:04d}-{k}.png"
        (directory / "images" / name).write_bytes(scene.png())
        parts.append(f'<figure><img src="images/{name}" alt="{escape(str(scene.things[0]))}"></figure>')
        parts.append(f"<p>The picture shows {escape(scene.describe())}. {rng.choice(_ASIDES)}</p>")
    body = "\n".join(parts)
    head = f'<head><meta charset="utf-8"><title>{escape(title)}</title></head>'
    return f'<!DOCTYPE html>\n<html lang="en">\n{head}\n<body>\n{body}\n</body>\n</html>\n'


def _write_pdf(path: Path, n: int, seed: int) -> None:
    """One or two pages: a scene above, its description as text below."""
    rng = random.Random(f"pdf:{seed}:{n}")
    document = pdfium.PdfDocument.new()
    for k in range(rng.randint(1, 2)):
        scene = Scene.at(seed, _FIRST_PDF + 8 * n + k)
        page = document.new_page(*_PAGE)
        _draw_scene(document, page, scene)
        y = 50.0
        for line in scene.describe().replace(" and ", "\nand ").split("\n"):
            _draw_text(document, page, line, 20.0, y)
            y -= 14.0
        page.gen_content()
    saved = io.BytesIO()
    document.save(saved)
    document.close()
    path.write_bytes(_undated(saved.getvalue()))


def _undated(pdf: bytes) -> bytes:
    """The file without its time of writing and its random id, so that the same seed gives the same bytes."""
    pdf = re.sub(rb"\(D:\d{14}", b"(D:20000101000000", pdf)
    return re.sub(rb"(?<=<)[0-9A-F]{32}(?=>)", b"0" * 32, pdf)


def _draw_scene(document: pdfium.PdfDocument, page: pdfium.PdfPage, scene: Scene) -> None:
    bitmap = pdfium.PdfBitmap.from_pil(_open(scene.png(128)))
    image = pdfium.PdfImage.new(document)
    image.set_bitmap(bitmap)
    image.set_matrix(pdfium.PdfMatrix().scale(150, 150).translate(25, 75))
    page.insert_obj(image)


def _draw_text(document: pdfium.PdfDocument, page: pdfium.PdfPage, text: str, x: float, y: float) -> None:
    handle = raw.FPDFPageObj_NewTextObj(document.raw, b"Helvetica", ctypes.c_float(10.0))
    encoded = (text + "\0").encode("utf-16-le")
    buffer = ctypes.create_string_buffer(encoded, len(encoded))
    raw.FPDFText_SetText(handle, ctypes.cast(buffer, raw.FPDF_WIDESTRING))
    raw.FPDFPageObj_Transform(handle, 1, 0, 0, 1, x, y)
    raw.FPDFPage_InsertObject(page.raw, handle)


def _open(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png), formats=("PNG",)).convert("RGB")
