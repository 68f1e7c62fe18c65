"""MINT-1T: tars of `key.json` and `key.tiff`, a page of the TIFF for each image of the text.

Pixels are kept exactly, but not the bytes of the files: the format stores pixels, here packed without loss.
Palettes become colours, and of an animation the first frame remains.
"""

import hashlib
import io
import json
import tarfile
from contextlib import ExitStack
from pathlib import Path

from PIL import Image

from data_pipeline.build.exporters.elements import Shown, Unfit, document
from data_pipeline.build.exporters.files import FILE_BYTES
from data_pipeline.build.images.check import FORMATS
from data_pipeline.sample import Sample, content_id

_MAX_PIXELS = 400_000_000  # of all images of a sample: the TIFF is made in memory
_AS_THEY_ARE = ("L", "LA", "RGB", "RGBA", "CMYK")


class Mint1t:
    def __init__(self, out: Path):
        self.out = out
        self.open: dict[str, tuple[ExitStack, tarfile.TarFile]] = {}
        self.number: dict[str, int] = {}

    def add(self, sample: Sample, split: str) -> int:
        """The number of images written. Raises Unfit."""
        sequence = document(sample)
        pictures = [e for e in sequence if isinstance(e, Shown)]
        tiff = _tiff(pictures) if pictures else None
        names = iter(f"page_{_page_number(p)}_image_{n}" for n, p in enumerate(pictures))
        page = {
            "texts": [e if isinstance(e, str) else None for e in sequence],
            "images": [next(names) if isinstance(e, Shown) else None for e in sequence],
            "image_metadata": [_about(p, n) for n, p in enumerate(pictures)],
            "url": sample.url,
            "id": sample.id,
        }
        key = content_id(sample.id)
        tar = self._tar(split)
        _put(tar, f"{key}.json", json.dumps(page, sort_keys=True, ensure_ascii=False).encode())
        if tiff is not None:
            _put(tar, f"{key}.tiff", tiff)
        if tar.offset >= FILE_BYTES:
            self.open.pop(split)[0].close()
        return len(pictures)

    def close(self) -> None:
        for stack, _ in self.open.values():
            stack.close()
        self.open = {}

    def _tar(self, split: str) -> tarfile.TarFile:
        if split not in self.open:
            number = self.number.get(split, 0)
            self.number[split] = number + 1
            stack = ExitStack()
            path = self.out / f"{split}-{number:05d}.tar"
            tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
            stack.enter_context(tar)
            self.open[split] = stack, tar
        return self.open[split][1]


def _put(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    tar.members = []  # type: ignore[attr-defined]  # its hints leave it out; it keeps every header otherwise


def _about(picture: Shown, number: int) -> dict[str, object]:
    media = picture.media
    return {
        "sha256": hashlib.sha256(picture.data).hexdigest(),
        "page": _page_number(picture),
        "xref": number,
        "width": media.width,
        "height": media.height,
        "url": media.url,
    }


def _page_number(picture: Shown) -> int:
    """Pages count from 0 there, from 1 here; what is of no page is on the first."""
    return max(0, (picture.media.page or 1) - 1)


def _tiff(pictures: list[Shown]) -> bytes:
    headers = [Image.open(io.BytesIO(p.data), formats=tuple(FORMATS)) for p in pictures]
    if sum(i.width * i.height for i in headers) > _MAX_PIXELS:
        raise Unfit("images too large for one TIFF")
    pages = (_page(i) for i in headers)  # decoded one at a time
    out = io.BytesIO()
    next(pages).save(out, "TIFF", save_all=True, append_images=pages, compression="tiff_adobe_deflate")
    return out.getvalue()


def _page(image: Image.Image) -> Image.Image:
    image.seek(0)
    if image.mode in _AS_THEY_ARE:
        page = image.copy()
    else:
        page = image.convert("RGBA" if image.has_transparency_data else "RGB")
    page.info = {}
    return page
