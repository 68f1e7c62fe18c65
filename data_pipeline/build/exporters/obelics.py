"""OBELICS: Parquet with `texts` and `images`, parallel lists, each place one or the other.

Kept: text to the character, image bytes, order, alt text, addresses, the page's own facts. Not kept: roles of
captions, boxes of text, page breaks, scores.
"""

import json
from pathlib import Path

import pyarrow as pa

from data_pipeline.build.exporters.elements import Shown, document
from data_pipeline.build.exporters.files import IMAGES, ParquetFiles, size_of, stored
from data_pipeline.sample import Sample

_SCHEMA = pa.schema(
    [
        ("images", IMAGES),
        ("texts", pa.list_(pa.string())),
        ("metadata", pa.string()),
        ("general_metadata", pa.string()),
    ]
)


class Obelics:
    def __init__(self, out: Path):
        self.rows = ParquetFiles(out, _SCHEMA)

    def add(self, sample: Sample, split: str) -> int:
        """The number of images written. Raises Unfit."""
        sequence = document(sample)
        pictures = [e for e in sequence if isinstance(e, Shown)]
        row = {
            "images": stored([e if isinstance(e, Shown) else None for e in sequence]),
            "texts": [e if isinstance(e, str) else None for e in sequence],
            "metadata": json.dumps([_about(e, sample) for e in sequence], ensure_ascii=False),
            "general_metadata": json.dumps(_page(sample), sort_keys=True, ensure_ascii=False),
        }
        self.rows.add(split, row, size_of(pictures) + sum(len(e) for e in sequence if isinstance(e, str)))
        return len(pictures)

    def close(self) -> None:
        self.rows.close()


def _about(element: str | Shown, sample: Sample) -> dict[str, object] | None:
    if isinstance(element, str):
        return None
    media = element.media
    about = {
        "document_url": sample.url,
        "src": media.url,
        "alt_text": media.alt,
        "original_width": media.orig_width,
        "original_height": media.orig_height,
        "license": media.license,
    }
    return {k: v for k, v in about.items() if v is not None}


def _page(sample: Sample) -> dict[str, object]:
    names = ("id", "kind", "source", "url", "domain", "date", "license", "lang")
    page = {k: getattr(sample, k) for k in names if getattr(sample, k) is not None}
    if sample.general_metadata:
        page["general_metadata"] = sample.general_metadata
    return page
