"""PDF files written by hand, so that a test knows every object in them."""

import io
import zlib

import pytest
from PIL import Image


class Pdf:
    @staticmethod
    def file(pages: list[bytes], media="0 0 612 792", xobjects=(), extra="", trailer="") -> bytes:
        """`pages`: content streams; `xobjects`: (name, dictionary, stream), shared by all pages."""
        objects: list[bytes] = []

        def add(body: bytes) -> int:
            objects.append(body)
            return len(objects)

        def stream(dictionary: str, data: bytes) -> bytes:
            return f"<< {dictionary} /Length {len(data)} >>\nstream\n".encode() + data + b"\nendstream"

        font = add(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
        ids: dict[str, int] = {}
        for name, dictionary, data in xobjects:
            for known, number in ids.items():
                dictionary = dictionary.replace(f"@{known}", f"{number} 0 R")
            ids[name] = add(stream(f"/Type /XObject {dictionary}", data))
        named = " ".join(f"/{n} {i} 0 R" for n, i in ids.items())
        resources = f"<< /Font << /F1 {font} 0 R >> /XObject << {named} >> >>"
        content = {c: add(stream("", c)) for c in dict.fromkeys(pages)}
        parent = len(objects) + len(pages) + 1
        page = f"/Type /Page /Parent {parent} 0 R /MediaBox [{media}] {extra} /Resources {resources}"
        kids = [add(f"<< {page} /Contents {content[c]} 0 R >>".encode()) for c in pages]
        add(f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(f'{k} 0 R' for k in kids)}] >>".encode())
        root = add(f"<< /Type /Catalog /Pages {parent} 0 R >>".encode())
        out = io.BytesIO()
        out.write(b"%PDF-1.7\n")
        offsets = []
        for number, body in enumerate(objects, 1):
            offsets.append(out.tell())
            out.write(b"%d 0 obj\n" % number + body + b"\nendobj\n")
        start = out.tell()
        out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
        out.write(b"".join(b"%010d 00000 n \n" % o for o in offsets))
        size = f"/Size {len(objects) + 1} /Root {root} 0 R {trailer}"
        out.write(f"trailer << {size} >>\nstartxref\n{start}\n%%EOF".encode())
        return out.getvalue()

    @staticmethod
    def text(x: float, y: float, words: str, size: int = 10) -> bytes:
        return f"BT /F1 {size} Tf {x} {y} Td ({words}) Tj ET\n".encode()

    @staticmethod
    def show(name: str, x: float, y: float, width: float, height: float) -> bytes:
        return f"q {width} 0 0 {height} {x} {y} cm /{name} Do Q\n".encode()

    @staticmethod
    def jpeg(name: str, data: bytes, more: str = "") -> tuple[str, str, bytes]:
        image = Image.open(io.BytesIO(data))
        space = {"L": "Gray", "RGB": "RGB", "CMYK": "CMYK"}[image.mode]
        about = f"/Subtype /Image /Width {image.width} /Height {image.height} /ColorSpace /Device{space}"
        return name, f"{about} /BitsPerComponent 8 /Filter /DCTDecode {more}", data

    @staticmethod
    def pixels(name: str, image: Image.Image, more: str = "") -> tuple[str, str, bytes]:
        space = {"L": "/DeviceGray", "RGB": "/DeviceRGB"}[image.mode]
        about = f"/Subtype /Image /Width {image.width} /Height {image.height} /ColorSpace {space}"
        return (
            name,
            f"{about} /BitsPerComponent 8 /Filter /FlateDecode {more}",
            zlib.compress(image.tobytes()),
        )

    @staticmethod
    def scene(width=120, height=80, mode="RGB", shift=0) -> Image.Image:
        """A picture whose four corners differ, so that a flip or a turn shows."""
        image = Image.new("RGB", (width, height), (230, 40, 30))
        image.paste((20, 200, 40), (width // 2, 0, width, height // 2))
        image.paste((10, 30, 220), (0, height // 2, width // 2, height))
        image.paste((250, 250, 10 + shift), (width // 2, height // 2, width, height))
        return image.convert(mode)

    @staticmethod
    def encoded(image: Image.Image) -> bytes:
        out = io.BytesIO()
        image.save(out, "JPEG", quality=90)
        return out.getvalue()


@pytest.fixture
def pdf() -> type[Pdf]:
    return Pdf
