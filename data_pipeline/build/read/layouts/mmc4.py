"""MMC4: `text_list`, and `image_info` that says to which text each image belongs.

An image stands directly before its matched sentence, several in the order of `image_info`. It is looked for
as `image_base64`, as the file `image_name` beside the rows, then at `raw_url`. Kept:

    text_list           text segments, unchanged to the character
    matched_sim         Segment.sim of the image segment
    raw_url             Media.url (image_name where there is none)
    image_info          general_metadata["image_info"], unchanged but without the pictures' bytes
    similarity_matrix   general_metadata
    url                 Sample.url
    other columns       general_metadata (could_have_url_duplicate...)
"""

from collections.abc import Mapping
from typing import Any

from data_pipeline.build.cut import Block
from data_pipeline.build.read.layouts.fields import (
    Found,
    Pictures,
    Unfit,
    licence,
    listed,
    numbers,
    rest,
    text,
)
from data_pipeline.build.read.reading import Fault
from data_pipeline.build.read.rows.row import Row

_BYTES = ("image_base64", "image_bytes", "bytes")

DOCUMENTS = True  # gives blocks, not segments


def recognises(value: Mapping[str, Any]) -> bool:
    return "text_list" in value


def read(row: Row, pictures: Pictures) -> Found:
    value = row.value
    assert isinstance(value, dict)
    texts = [text(t, "text_list") for t in listed(value.get("text_list"), "text_list")]
    infos = listed(value.get("image_info"), "image_info")
    before: dict[int, list[tuple[Block, float | None]]] = {}
    for info in infos:
        if not isinstance(info, dict):
            raise Unfit("invalid record", f"an entry of image_info is a {type(info).__name__}")
        at = info.get("matched_text_index")
        sim = numbers(info, ("matched_sim",)).get("matched_sim")
        if isinstance(at, int) and 0 <= at < len(texts):
            before.setdefault(at, []).append((_picture(info, pictures), sim))
        else:
            before.setdefault(len(texts), []).append((_misplaced(row, at, len(texts)), None))
    blocks: list[Block] = []
    sims: list[float | None] = []
    for n in range(len(texts) + 1):
        for block, sim in before.get(n, ()):
            blocks.append(block)
            if block.picture is not None:
                sims.append(sim)
        if n < len(texts) and texts[n]:
            blocks.append(Block(text=texts[n]))
    metadata = rest(value, ("text_list", "image_info", "url", "license"))
    if infos:
        metadata["image_info"] = [rest(info, _BYTES) for info in infos]
    return Found(
        kind="interleaved",
        blocks=tuple(blocks),
        sims=tuple(sims),
        metadata=metadata,
        licence=licence(value),
        url=text(value.get("url"), "url") or None,
    )


def _picture(info: Mapping[str, Any], pictures: Pictures) -> Block:
    url = text(info.get("raw_url"), "raw_url") or None
    name = text(info.get("image_name"), "image_name") or None
    inline = next((info[k] for k in _BYTES if info.get(k)), None)
    if isinstance(inline, str):
        inline = f"data:image/jpeg;base64,{inline}"
    if inline is not None:
        return pictures.block(inline, url=url or name)
    if name is not None and (url is None or pictures.has(name)):
        return pictures.block(name, url=url)
    return pictures.block(url)


def _misplaced(row: Row, at: Any, texts: int) -> Block:
    detail = f"matched_text_index is {str(at)[:40]}, the document has {texts} texts"
    return Block(
        cut=Fault(reason="no place in the text", detail=detail, bad=True, file=row.file, where=row.where)
    )
