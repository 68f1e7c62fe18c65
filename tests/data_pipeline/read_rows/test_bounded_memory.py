"""Each container, far larger than its caps, in a process that may have little memory beyond the imports."""

import gzip
import io
import json
import subprocess
import sys
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

EACH, ROWS = 64 * 2**10, 1600  # 100 MiB
ALLOWED = 64 * 2**20

# How far the high-water mark of memory rises above its height before the first row. Pages of a mapped file
# are the system's to take back, so they are left out: there the process's own memory is asked at every row.
_READ = """
import sys
from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.rows.containers import read_rows
from data_pipeline.build.read.rows.row import Unit

def status(field):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(field)) * 1024

tree, name, rows = Tree.at(sys.argv[1]), sys.argv[2], 0
list(read_rows(tree, Unit("small.jsonl"), 2**20))
with open("/proc/self/clear_refs", "w") as f:
    f.write("5")
mapped = name.endswith(".arrow")
base = peak = status("RssAnon" if mapped else "VmRSS")
for row in read_rows(tree, Unit(name), 2**20):
    rows += isinstance(row.value, dict)
    if mapped:
        peak = max(peak, status("RssAnon"))
print(rows, (peak if mapped else status("VmHWM")) - base)
"""


def measured(folder, name):
    (folder / "small.jsonl").write_text("{}")
    command = [sys.executable, "-c", _READ, str(folder), name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return tuple(int(x) for x in done.stdout.split())


def write_lines(path):
    line = json.dumps({"text": "x" * EACH}).encode() + b"\n"
    with gzip.open(path, "wb", 1) if path.suffix == ".gz" else path.open("wb") as f:
        for _ in range(ROWS):
            f.write(line)


def write_list(path):
    with path.open("w") as f:
        f.write("[")
        for n in range(ROWS):
            f.write(("," if n else "") + json.dumps({"text": "x" * EACH}))
        f.write("]")


def write_coco(path):
    with path.open("w") as f:
        f.write('{"annotations": [')
        for n in range(ROWS):
            f.write(("," if n else "") + json.dumps({"image_id": n, "caption": "x" * EACH}))
        f.write('], "images": [' + ",".join(f'{{"id": {n}}}' for n in range(ROWS)) + "]}")


def write_parquet(path):
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(
        path, schema, compression="NONE", write_batch_size=16, use_dictionary=False
    ) as writer:
        # One row group of everything: as careless writers make them.
        writer.write_table(pa.table({"image": [bytes(EACH)] * ROWS}), row_group_size=ROWS)


def write_arrow(path):
    with pa.ipc.new_stream(path, pa.schema([("image", pa.binary())])) as writer:
        writer.write_batch(pa.record_batch([[bytes(EACH)] * ROWS], ["image"]))


def write_tar(path):
    with tarfile.open(path, "w") as tar:
        for n in range(ROWS):
            info = tarfile.TarInfo(f"{n:05d}.jpg")
            info.size = EACH
            tar.addfile(info, io.BytesIO(bytes(EACH)))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("x.jsonl", write_lines),
        ("x.jsonl.gz", write_lines),
        ("x.json", write_list),
        ("coco.json", write_coco),
        ("x.parquet", write_parquet),
        ("x.arrow", write_arrow),
        ("x.tar", write_tar),
    ],
)
def test_a_file_of_a_hundred_mebibytes_is_read_in_a_fraction_of_them(tmp_path, name, write):
    write(tmp_path / name)
    rows, own = measured(tmp_path, name)
    assert rows == ROWS
    assert own < ALLOWED


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.jsonl.gz", "x.tar"])
def test_one_value_without_an_end_is_not_collected(tmp_path, name):
    size = 300 * 2**20
    if name.endswith(".gz"):
        with gzip.open(tmp_path / name, "wb", 1) as f:
            f.write(b'{"a": "')
            for _ in range(size // 2**20):
                f.write(b"x" * 2**20)
    else:
        head = b'[{"a": "' if name == "x.json" else b'{"a": "'
        if name == "x.tar":
            info = tarfile.TarInfo("a.json")
            info.size = size
            head = info.tobuf()
        with (tmp_path / name).open("wb") as f:
            f.write(head)
            for _ in range(size // 2**20):
                f.write(b"x" * 2**20)
    rows, own = measured(tmp_path, name)
    assert rows == 0
    assert own < ALLOWED
