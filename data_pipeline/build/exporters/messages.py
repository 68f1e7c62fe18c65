"""Chat `messages`: Parquet with `images` and `messages`: [{role, content: [{type: text | image}]}, ...].

The n-th part of type image shows the n-th image. Kept: text to the character, image bytes, order, roles.
"""

from pathlib import Path

import pyarrow as pa

from data_pipeline.build.exporters.elements import check_dialogue, shown
from data_pipeline.build.exporters.files import IMAGES, ParquetFiles, size_of, stored
from data_pipeline.build.read.layouts.messages import messages_of
from data_pipeline.sample import Sample

_PART = pa.struct([("type", pa.string()), ("text", pa.string())])
_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.list_(_PART))])
_SCHEMA = pa.schema(
    [("images", IMAGES), ("messages", pa.list_(_MESSAGE)), ("id", pa.string()), ("source", pa.string())]
)


class Messages:
    def __init__(self, out: Path):
        self.rows = ParquetFiles(out, _SCHEMA)

    def add(self, sample: Sample, split: str) -> int:
        """The number of images written. Raises Unfit."""
        check_dialogue(sample)
        pictures = [shown(sample, s.media or 0) for s in sample.segments if s.type == "image"]
        row = {
            "images": stored(list(pictures)),
            "messages": messages_of(sample.segments),
            "id": sample.id,
            "source": sample.source,
        }
        self.rows.add(split, row, size_of(pictures) + len(sample.text))
        return len(pictures)

    def close(self) -> None:
        self.rows.close()
