"""That a shard was verified is proved once for a machine, and by nothing torn or foreign."""

import os
import subprocess
import sys

import pytest

from data_pipeline import manifest as m
from data_pipeline.errors import DataError
from data_pipeline.stream.shards.opened import Shards
from data_pipeline.stream.source import Source
from shards import FORMATS, PER_SHARD, copied


@pytest.mark.parametrize("format", FORMATS)
def test_a_proof_is_made_once_for_a_machine(built, tmp_path, format: str, monkeypatch) -> None:
    manifest, proofs = copied(built, tmp_path), tmp_path / "proofs"
    Source.open(tmp_path, manifest, "docs", format=format, shards=Shards(proofs))[0]
    found = list(proofs.iterdir())
    assert len(found) == 1
    monkeypatch.setattr(m, "sha256_file", None)  # whoever hashed again would fail
    again = Source.open(tmp_path, manifest, "docs", format=format, shards=Shards(proofs))
    assert again[0].id == "doc0"
    with pytest.raises(TypeError):
        again[PER_SHARD]  # another shard: not proven yet
    monkeypatch.undo()
    assert again[PER_SHARD].id == f"doc{PER_SHARD}"
    path = tmp_path / manifest.shards(format=format)[0].path
    good, stat = path.read_bytes(), path.stat()
    path.write_bytes(good[:700] + bytes([good[700] ^ 1]) + good[701:])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # altered, with its old time put back
    with pytest.raises(DataError, match="was altered"):
        Source.open(tmp_path, manifest, "docs", format=format, shards=Shards(proofs))[0]


def test_a_torn_or_foreign_proof_proves_nothing(built, tmp_path) -> None:
    manifest, proofs = copied(built, tmp_path), tmp_path / "proofs"
    Source.open(tmp_path, manifest, "docs", shards=Shards(proofs))[0]
    [proof] = proofs.iterdir()
    whole = proof.read_bytes()
    for torn in (b"", whole[:-3], b"null", b"{}", whole.replace(b"docs", b"dogs")):
        proof.write_bytes(torn)
        Source.open(tmp_path, manifest, "docs", shards=Shards(proofs))[0]
        assert proof.read_bytes() == whole


def test_processes_that_come_at_once_prove_a_shard_once(built, tmp_path) -> None:
    copied(built, tmp_path)
    code = (
        "import sys, time; from pathlib import Path; import data_pipeline.stream.shards.opened as o\n"
        "from data_pipeline.manifest import read_manifest; from data_pipeline.stream.source import Source\n"
        "real = o.check_shard; o.check_shard = lambda *a: (print('proven'), real(*a), time.sleep(0.3))\n"
        "d = Path(sys.argv[1]); shards = o.Shards(d / 'proofs')\n"
        "source = Source.open(d, read_manifest(d), 'docs', shards=shards)\n"
        "(d / f'{sys.argv[2]}.ready').touch()\n"
        "while len(list(d.glob('*.ready'))) < 3: time.sleep(0.01)\n"
        "source[0]"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n)], stdout=subprocess.PIPE)
        for n in range(3)
    ]
    assert b"".join(p.communicate()[0] for p in running).count(b"proven") == 1
    assert [p.returncode for p in running] == [0, 0, 0]
    assert len(list((tmp_path / "proofs").iterdir())) == 1
