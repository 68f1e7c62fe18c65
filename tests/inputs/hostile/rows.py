"""Files of rows that are broken, deep, huge or of other types."""

import functools
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq

from hostile.images import KEPT


def good_rows(n: int) -> list[dict[str, str]]:
    return [{"image": "good.jpg", "caption": f"a caption number {i} of a row"} for i in range(n)]


@functools.cache
def rows() -> dict[str, tuple[bytes, list[str]]]:
    lines = [json.dumps(r) for r in good_rows(2)]
    jsonl = [
        lines[0].encode(),
        b'{"image": "good.jpg", "caption": ',
        b'{"image": "good.jpg", "caption": "\xff\xfe"}',
        b'{"image": "good.jpg", "caption": NaN}',
        b'{"image": "good.jpg", "caption": "a lone \\ud800 surrogate"}',
        b'{"image": "good.jpg", "caption": ["a", "list"]}',
        b'{"image": 3, "caption": "a picture that is a number"}',
        b'{"image": "good.jpg", "caption": "deep", "more": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'"text"',
        b"[" * 200_000,
        lines[1].encode(),
    ]
    faults = ["invalid record"] * 3 + ["invalid text"] * 2 + ["missing image"] + ["invalid record"] * 3
    table = pa.Table.from_pylist(good_rows(400))
    out = io.BytesIO()
    pq.write_table(
        table, out, row_group_size=100, compression="NONE", use_dictionary=False, write_page_checksum=True
    )
    parquet = out.getvalue()
    flipped = parquet.replace(b"a caption number 150", b"a caption number 159")  # told by its checksum alone
    out = io.BytesIO()
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 2**30, 6)))
    wild = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"abcdef")])
    with pa.ipc.new_file(out, pa.schema([("caption", pa.string())])) as writer:
        writer.write_batch(pa.record_batch([wild], ["caption"]))
    csv = b'image,caption\ngood.jpg,"quoted, with a comma"\ngood.jpg,one,too many\ngood.jpg\ngood.jpg,last\n'
    return {
        "captions-lines.jsonl": (b"\n".join(jsonl), [KEPT, *faults, KEPT]),
        "half.parquet": (parquet[: len(parquet) // 2], ["unreadable file"]),
        "page.parquet": (flipped, [KEPT] * 300 + ["unreadable file"]),
        "offsets.arrow": (out.getvalue(), ["unreadable file"]),
        "zero-byte.parquet": (b"", ["unreadable file"]),
        "table.csv": (csv, [KEPT, KEPT, "invalid record", "invalid record"]),
        "open-quote.csv": (
            b'image,caption\ngood.jpg,kept\ngood.jpg,"' + b"x" * 200_000,
            [KEPT, "invalid record"],
        ),
        "captions-bomb.jsonl.gz": (
            gzip.compress(lines[0].encode() + b"\n" + b"x" * 2**27 + b"\n", 1),
            [KEPT, "row too large"],
        ),
    }
