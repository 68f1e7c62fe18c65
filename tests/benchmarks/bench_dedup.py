"""Speed of deduplication: MinHash against datatrove's own on the same text; the Hamming index against a scan.

    python tests/benchmarks/bench_dedup.py [--out FILE]

CPU time of one core, the best of several rounds. The texts are 3,000-character pieces of the Gutenberg books.
"""

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

from data_pipeline.build.dedup.config import MinHash
from data_pipeline.build.dedup.hamming import HammingIndex
from data_pipeline.build.dedup.minhash import Signatures, Words, datatrove_config

REALDATA = Path(__file__).parents[2].parent / "shared" / "realdata"


def best(work: Callable[[], object], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def texts(most: int = 1000, chars: int = 3000) -> list[str]:
    found: list[str] = []
    for path in sorted((REALDATA / "html_gutenberg").rglob("*.htm*")):
        text = re.sub(r"<[^>]+>", " ", path.read_text(encoding="utf-8", errors="replace"))
        found += [text[i : i + chars] for i in range(0, len(text), chars)]
    return [t for t in found if len(t.split()) > 100][:most]


def minhash(rounds: int) -> dict[str, float]:
    """The whole first step, which is where the time goes: shingles, signatures, files, sorting."""
    documents = [Document(text=t, id=str(n)) for n, t in enumerate(texts())]
    config = datatrove_config(MinHash())
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, step in (("datatrove", MinhashDedupSignature), ("fovea", Signatures)):
            made = step(f"{folder}/{name}", config=config, language=Words())
            seconds[name] = best(lambda made=made: made.run(documents, 0, 1), rounds)
        for path in sorted(Path(folder, "datatrove").rglob("*.sig")):
            twin = Path(folder, "fovea", path.relative_to(Path(folder, "datatrove")))
            assert twin.read_bytes() == path.read_bytes(), f"{path.name} differs"
    return {
        "documents": len(documents),
        "documents_per_s": len(documents) / seconds["fovea"],
        "ratio_to_datatrove": seconds["datatrove"] / seconds["fovea"],
    }


def hamming(rounds: int, stored: int = 1_000_000, asked: int = 1024) -> dict[str, float]:
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**64, stored, np.uint64)
    queries = hashes[rng.integers(0, stored, asked)] ^ (
        np.uint64(1) << rng.integers(0, 64, asked).astype(np.uint64)
    )
    index = HammingIndex(10)
    adding = best(lambda: index.add(hashes), 1)

    def scan() -> None:
        for query in queries[:64]:
            np.flatnonzero(np.bitwise_count(hashes ^ query) <= 10)

    searching = best(lambda: index.search(queries), rounds) / asked
    return {
        "hashes": stored,
        "queries_per_s": 1 / searching,
        "added_per_s": stored / adding,
        "ratio_to_numpy_scan": best(scan, rounds) / 64 / searching,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = {"minhash": minhash(options.rounds), "hamming": hamming(options.rounds)}
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
