"""Rows per second of the containers, as ratios to the usual reader of each format in the same process.

python tests/benchmarks/bench_rows.py [--out FILE]
"""

import argparse
import io
import json
import tarfile
import tempfile
import time
from pathlib import Path

import ijson
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds

from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.rows.containers import read_rows
from data_pipeline.build.read.rows.row import Unit

ROUNDS = 5


def write(folder: Path) -> None:
    pictures = [bytes([n % 251]) * 60_000 for n in range(1500)]
    with tarfile.open(folder / "x.tar", "w") as tar:
        for n, data in enumerate(pictures):
            for ending, content in (("jpg", data), ("txt", b"a caption"), ("json", b'{"key": "k"}')):
                info = tarfile.TarInfo(f"{n:06d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    pq.write_table(
        pa.table({"image": pictures, "text": ["t"] * 1500}), folder / "x.parquet", row_group_size=100
    )
    records = [
        {"id": n, "image": f"{n}.jpg", "conversations": [{"from": "human", "value": "word " * 40}]}
        for n in range(60_000)
    ]
    (folder / "x.json").write_text(json.dumps(records))
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, records)))


def peers(folder: Path) -> dict:
    def lines():
        with (folder / "x.jsonl").open() as f:
            yield from map(json.loads, f)

    def table():
        for batch in pq.ParquetFile(folder / "x.parquet").iter_batches(32):
            yield from batch.to_pylist()

    def listed():
        with (folder / "x.json").open("rb") as f:
            yield from ijson.items(f, "item", use_float=True)

    return {
        "x.tar": ("webdataset", lambda: wds.WebDataset(str(folder / "x.tar"), shardshuffle=False)),
        "x.json": ("ijson", listed),
        "x.jsonl": ("json.loads per line", lines),
        "x.parquet": ("pyarrow iter_batches", table),
    }


def best(rows) -> tuple[float, int]:
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        count = sum(1 for _ in rows())
        times.append(time.process_time() - start)
    return min(times), count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder)
        tree = Tree.at(folder)
        for name, (peer, rows) in peers(folder).items():
            theirs, expected = best(rows)
            ours, count = best(lambda name=name: read_rows(tree, Unit(name)))
            assert count == expected, name
            found[name] = {"peer": peer, "rows_per_s": count / ours, "times_the_peer": theirs / ours}
            print(f"{name:10} {count / ours:10,.0f} rows/s  {theirs / ours:5.2f} x {peer}")
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
