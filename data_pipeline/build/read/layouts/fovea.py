"""Rows of this project's own schema (`data_pipeline.sample`), from Arrow, Parquet, or its own tars.

Everything is kept, the id too; only `source` becomes the name that the recipe gives.
"""

import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from data_pipeline.build.read.layouts.fields import MAX_METADATA, Unfit, text
from data_pipeline.build.read.rows.row import Row
from data_pipeline.sample import SCHEMA, Sample

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")  # it names members of tars


def recognises(value: Mapping[str, Any]) -> bool:
    return {"schema_version", "segments", "media"} <= value.keys()


def read(row: Row, source: str, default_licence: str | None) -> Sample:
    """Raises Unfit where the row breaks the schema."""
    value = row.value
    assert isinstance(value, dict)
    try:
        images = value.get("images")
        if images is None:
            images = [{"bytes": data} for data in _members(row, len(value["media"]))]
        own = value.get("license") or default_licence
        made = Sample.from_row({**value, "images": images, "source": source, "license": own})
        if not (isinstance(made.id, str) and _ID.fullmatch(made.id)):
            raise ValueError(f"id {str(made.id)[:80]!r}")
        if not all(isinstance(m.media_id, str) for m in made.media):
            raise ValueError("a picture without media_id")
        # Types are proved here, with the reason, and not when the shard is written.
        pa.RecordBatch.from_pylist([made.to_row()], schema=SCHEMA)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as e:
        raise Unfit("invalid record", f"not a row of the schema: {e}") from None
    for segment in made.segments:
        text(segment.text, "segments")
    if len(made.general_metadata or "") > MAX_METADATA:
        raise Unfit("text too long", "general_metadata is larger than the limit", bad=False)
    return made


def _members(row: Row, media: int) -> list[bytes | None]:
    """`000.jpg` is the first picture, `1000.jpg` the thousand and first; without a member it has no bytes."""
    numbered = ((name.partition(".")[0], data) for name, data in row.images.items())
    found = {int(number): data for number, data in numbered if number.isdecimal()}
    return [found.get(n) for n in range(media)]
