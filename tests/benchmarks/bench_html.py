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
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import trafilatura

from data_pipeline.build.read.dom import read_page
from data_pipeline.build.read.dom_decode import decode

BOOKS = Path(__file__).parents[2] / "../shared/realdata/html_gutenberg"
CUT = 20_000
WORDS = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had
an they which one you were her all she there would their we him been has when who will more no if
out so said what up its about into than them can only other new some could time these two may then
do first any my now such like our over man me even most made after also did many before must through
back years where much your way well down should because each just those people how too little state
good very make world still own see men work long get here between both life being under never day
same another know while last might us great old year off come since
""".split()  # noqa: SIM905


class Site:
    """Pages of one invented site; `rng` decides lengths, words and pictures."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)

    def words(self, n: int) -> str:
        return " ".join(self.rng.choices(WORDS, k=n)).capitalize()

    def paragraph(self) -> str:
        text = self.words(self.rng.randint(25, 90))
        if self.rng.random() < 0.5:
            text += f' <a href="/a/{self.rng.randint(1, 999)}">{self.words(3)}</a>, {self.words(12)}'
        if self.rng.random() < 0.3:
            text += f" <em>{self.words(2)}</em> {self.words(9)}"
        return f"<p>{text}.</p>\n"

    def figure(self, n: int) -> str:
        small, large = f"/media/{n}-640.jpg 640w", f"/media/{n}-1280.jpg 1280w"
        return (
            f'<figure class="wp-block-image size-large"><img loading="lazy" decoding="async" width="1280" '
            f'height="853" src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" data-src="/media/{n}.jpg" '
            f'data-srcset="{small}, {large}" alt="{self.words(6)}" class="wp-image-{n} lazyload"/>'
            f"<figcaption>{self.words(9)}.</figcaption></figure>\n"
        )

    def menu(self, n: int) -> str:
        items = "".join(
            f'<li id="menu-item-{k}" class="menu-item menu-item-type-taxonomy menu-item-{k}">'
            f'<a href="/topic/{k}/"><span>{self.words(2)}</span></a></li>\n'
            for k in range(n)
        )
        return f'<nav class="main-navigation" aria-label="Primary"><ul class="menu">{items}</ul></nav>\n'

    def icons(self, n: int) -> str:
        path = "M12 2.04c-5.5 0-9.96 4.46-9.96 9.96 0 4.99 3.66 9.12 8.44 9.88v-6.99H7.9v-2.89h2.54V9.8"
        icon = f'<svg width="24" height="24" viewBox="0 0 24 24" aria-hidden="true"><path d="{path}"/></svg>'
        links = "".join(f'<li><a href="/share/{k}" aria-label="Share">{icon}</a></li>' for k in range(n))
        return f'<div class="share-buttons"><ul>{links}</ul></div>\n'

    def cards(self, n: int) -> str:
        cards = "".join(
            f'<div class="card"><a href="/p/{k}"><img src="/thumb/{k}.jpg" width="300" height="200" alt="">'
            f"</a><h3><a href='/p/{k}'>{self.words(6)}</a></h3><span>{self.words(3)}</span></div>\n"
            for k in range(n)
        )
        return f'<section class="related-posts"><h2>Related</h2>{cards}</section>\n'

    def comments(self, n: int) -> str:
        entries = "".join(
            f'<li class="comment"><div class="comment-meta"><b>{self.words(2)}</b> <time>2 May</time></div>'
            f"<p>{self.words(self.rng.randint(8, 60))}.</p><a href='?reply={k}'>Reply</a></li>\n"
            for k in range(n)
        )
        return f'<ol class="comment-list">{entries}</ol>\n'

    def page(self, size: int) -> bytes:
        """A page of about `size` bytes: about half of it article, the rest what such pages carry."""
        rng, body, n = self.rng, [], 0
        while sum(map(len, body)) < size * 0.5:
            n += 1
            body.append(self.paragraph())
            if n % 4 == 1:
                body.append(self.figure(rng.randint(1, 9999)))
            if n % 5 == 0:
                body.append(f"<h2>{self.words(5)}</h2>\n")
            if n % 9 == 0:
                items = "".join(f"<li>{self.words(8)}</li>\n" for _ in range(4))
                body.append(f"<ul>\n{items}</ul>\n")
        part = size // 1000
        ld = json.dumps(
            {"@type": "NewsArticle", "headline": self.words(8), "keywords": self.words(10 + part)}
        )
        script = "!function(e,t){for(var n=0;n<t.length;n++)e.push(t[n])}(window.q||[],[1,2,3]);" * (
            1 + part // 3
        )
        style = ".wp-block-image{margin:0 0 1em}.menu>li{display:inline}" * (2 + part // 4)
        return (
            f'<!DOCTYPE html>\n<html lang="en-US"><head><meta charset="utf-8"><title>{self.words(6)}</title>'
            f'<meta name="description" content="{self.words(20)}"><link rel="canonical" href="/p/{size}">'
            f'<style>{style}</style><script type="application/ld+json">{ld}</script></head>\n'
            f'<body class="single post-template"><header class="site-header"><a href="/">{self.words(2)}</a>'
            f'{self.menu(4 + part // 2)}</header>\n<main id="content"><article class="post">'
            f"<h1>{self.words(8)}</h1>"
            f'<div class="entry-meta">By <a href="/author/x">{self.words(2)}</a> <time>1 May</time></div>\n'
            f'<div class="entry-content">{"".join(body)}</div>'
            f"{self.icons(5)}</article>{self.comments(part // 4)}"
            f'</main>\n<aside class="sidebar">{self.cards(3 + part // 8)}</aside>{self.cards(3)}'
            f'<footer class="site-footer"><div>{self.menu(part // 3)}<p>{self.words(20)}</p></div></footer>\n'
            f"<script>{script}</script></body></html>"
        ).encode()


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
