"""HTML extraction, bytes to blocks, against trafilatura on one core, in the same run.

    python tests/benchmarks/bench_html.py [--out bench_html.json] [--rounds 5]

Pages: the Gutenberg books of ../shared/realdata cut to the size of a web page, and pages of 5 to 50 KB in
the shape of blogs and news sites (menus, inline scripts and vector icons, lazy images, related posts,
comments, a footer). Each round has other pages (another site, other cuts of the books), so that nobody's
caches are warm; in a round all read the same ones in turn. Times are CPU seconds of this process, of each
reader its best round; documents/s and the ratio are reported for each set and for both together. trafilatura
runs as its users run it: on the page's bytes, with its default settings, with and without `include_images`.
"""

import argparse
import json
import logging
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import trafilatura

sys.path.insert(0, str(Path(__file__).parents[1] / "inputs"))

from data_pipeline.build.read.dom import read_page
from data_pipeline.build.read.dom_decode import decode
from site_pages import Site

BOOKS = Path(__file__).parents[2] / "../shared/realdata/html_gutenberg"
CUT = 20_000


def books(skip: int) -> list[bytes]:
    """At most six pieces of each book after the first `skip` characters, each under the head of its page."""
    pages = []
    for path in sorted(BOOKS.glob("*/*.htm*")):
        text = decode(path.read_bytes())
        head, body = re.split(r"(?i)<body[^>]*>", text, maxsplit=1)
        for start in range(skip, min(len(body), skip + 6 * CUT), CUT):
            pages.append(f"{head}<body>{body[start : start + CUT]}</body></html>".encode())
    return pages


def pages_of(round_: int) -> dict[str, list[bytes]]:
    site = Site(round_)
    sets = {"web": [site.page(size) for size in range(5_000, 50_001, 1_500)]}
    if BOOKS.is_dir():
        sets["books"] = books(skip=1_000 * round_)
    return sets


def seconds_per_page(read: Callable[[bytes], object], pages: list[bytes]) -> float:
    """CPU time."""
    start = time.process_time()
    for page in pages:
        read(page)
    return (time.process_time() - start) / len(pages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    readers: dict[str, Callable[[bytes], object]] = {
        "fovea": lambda page: read_page(decode(page), "https://site.org/p/1"),
        "trafilatura": trafilatura.extract,
        "trafilatura, images": lambda page: trafilatura.extract(page, include_images=True),
    }
    sets = pages_of(0)
    best = {name: dict.fromkeys(readers, float("inf")) for name in sets}
    for round_ in range(args.rounds):
        for name, pages in pages_of(round_).items():
            for reader, read in readers.items():
                best[name][reader] = min(best[name][reader], seconds_per_page(read, pages))
    result = {name: _row(best[name], len(pages), sum(map(len, pages))) for name, pages in sets.items()}
    documents = sum(map(len, sets.values()))
    both = {r: sum(best[name][r] * len(pages) for name, pages in sets.items()) / documents for r in readers}
    result["together"] = _row(both, documents, sum(len(p) for s in sets.values() for p in s))
    text = json.dumps(result, indent=1)
    sys.stdout.write(text + "\n")
    if args.out:
        args.out.write_text(text + "\n")


def _row(seconds: dict[str, float], pages: int, size: int) -> dict[str, float]:
    rates = {f"{r}: documents/s": round(1 / s, 1) for r, s in seconds.items()}
    ratios = {f"fovea / {r}": round(s / seconds["fovea"], 1) for r, s in seconds.items() if r != "fovea"}
    return {"documents": pages, "mean_kb": round(size / pages / 1000, 1), **rates, **ratios}


if __name__ == "__main__":
    main()
