"""Every picture of every real book, in order, with the text between them: against the standard library.

The second reader below shares no code with the one under test: it is built on `html.parser`, and knows
nothing but what the HTML standard says of which tags end a line of text.
"""

import io
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from data_pipeline.build.read.dom import Text, read_page
from data_pipeline.build.read.dom_decode import decode
from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.html import HtmlReader
from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.build.run import build
from data_pipeline.sample import Sample
from data_pipeline.view import samples

BOOKS = Path(__file__).parents[3] / "../shared/realdata/html_gutenberg"
PAGES = sorted(BOOKS.glob("*/*.htm*")) if BOOKS.is_dir() else []
INLINE = set(
    """
    a abbr acronym b bdo big cite code del dfn em font i ins kbd q s samp small span strike strong
    sub sup tt u var wbr
    """.split()  # noqa: SIM905
)
UNSEEN = {"script", "style", "title", "map", "head"}
MAX_BYTES = 64 * 2**20

pytestmark = pytest.mark.skipif(not PAGES, reason="no ../shared/realdata beside the repository")


class Naive(HTMLParser):
    """The page as [text, (src, alt), text, ...], a text for each block."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.seen: list[str | tuple[str, str]] = []
        self.words = ""
        self.plain = ""  # of the block's words, those outside links
        self.unseen = 0
        self.link = False
        self.linked: list[str] = []

    def end_block(self) -> None:
        text = " ".join(self.words.split())
        if text:
            self.seen.append(text)
            if not self.plain.strip():
                self.linked.append(text)
        self.words = self.plain = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in UNSEEN:
            self.unseen += 1
        elif tag == "a":
            self.link = "href" in given
        elif tag == "img":
            self.end_block()
            self.seen.append((given.get("src") or "", " ".join((given.get("alt") or "").split())))
        elif tag in ("br", "td", "th"):
            self.words += " "
        elif tag not in INLINE:
            self.end_block()

    def handle_endtag(self, tag: str) -> None:
        if tag in UNSEEN:
            self.unseen = max(0, self.unseen - 1)
        elif tag == "a":
            self.link = False
        elif tag in ("td", "th"):
            self.words += " "
        elif tag not in INLINE and tag != "img":
            self.end_block()

    def handle_data(self, data: str) -> None:
        if not self.unseen:
            self.words += data
            self.plain += "" if self.link else data

    def between(self) -> tuple[list[tuple[str, str]], list[str]]:
        """The pictures, and the words before, between and after them, without links that come 3 times."""
        self.end_block()
        gone = {t for t, n in Counter(self.linked).items() if n >= 3}
        pictures: list[tuple[str, str]] = []
        gaps = [""]
        for part in self.seen:
            if isinstance(part, tuple):
                pictures.append(part)
                gaps.append("")
            elif part not in gone:
                gaps[-1] += f" {part}"
        return pictures, [" ".join(g.split()) for g in gaps]


def naive(page: Path) -> tuple[list[tuple[str, str]], list[str]]:
    reader = Naive()
    data = page.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    reader.feed(text[text.lower().index("<body") :])
    reader.close()
    return reader.between()


def decodable(path: Path) -> bool:
    try:
        with Image.open(io.BytesIO(path.read_bytes()), formats=("JPEG", "PNG", "WEBP", "GIF")) as image:
            image.load()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_pictures_alt_texts_and_the_words_between_are_those_of_the_page(page):
    pictures, gaps = naive(page)
    found, texts = [], [""]
    for block in read_page(decode(page.read_bytes())).blocks:
        if isinstance(block, Text):
            texts[-1] += f" {block.text}"
        else:
            found.append((block.urls[0], block.alt or ""))
            texts.append("")
    assert found == pictures
    assert [" ".join(t.split()) for t in texts] == gaps


def test_99_percent_of_the_pictures_on_disk_come_out_of_the_reader_in_source_order():
    wanted = given = 0
    for page in PAGES:
        expected = [unquote(src) for src, _ in naive(page)[0] if (page.parent / unquote(src)).is_file()]
        expected = [(page.parent / src).read_bytes() for src in expected if decodable(page.parent / src)]
        reader = HtmlReader("books", None, Tree.at(page, max_bytes=MAX_BYTES))
        out = [
            item.sample.image_bytes[s.media]
            for item in reader.read(page.name)
            if item.sample is not None
            for s in item.sample.segments
            if s.media is not None
        ]
        wanted += len(expected)
        given += _common_in_order(expected, out)
    assert wanted > 150, "the books hold pictures"
    assert given >= 0.99 * wanted
    assert given == wanted, "and so far every one of them"


def _common_in_order(expected: list[bytes], out: list[bytes]) -> int:
    """How many of `expected` are met in `out`, in order, with none skipped over twice."""
    at = met = 0
    for data in expected:
        if data in out[at:]:
            at = out.index(data, at) + 1
            met += 1
    return met


def allowed(path: Path) -> bool:
    """As `ImageLimits` says by default: a side of 16 pixels, an aspect of 8, a longer side of 20,000."""
    if not decodable(path):
        return False
    with Image.open(path) as image:
        short, long = sorted(image.size)
    return short >= 16 and long <= 8 * short and long <= 20_000


def page_as_it_should_be(page: Path) -> list[str | bytes]:
    """Words and pictures in turn; words around a picture that is not allowed are one text."""
    pictures, gaps = naive(page)
    made: list[str | bytes] = [gaps[0]]
    for (src, _), words in zip(pictures, gaps[1:], strict=True):
        file = page.parent / unquote(src)
        if file.is_file() and allowed(file):
            made += [file.read_bytes(), words]
        else:
            made[-1] = " ".join(f"{made[-1]} {words}".split())
    return made


def page_as_it_is(found: list[Sample]) -> list[str | bytes]:
    made: list[str | bytes] = []
    words: list[str] = []
    for sample in found:
        for segment in sample.segments:
            if segment.media is None:
                words += (segment.text or "").split()
            else:
                made += [" ".join(words), sample.image_bytes[segment.media] or b""]
                words = []
    return [*made, " ".join(words)]


def build_books(out: Path, heldout: float) -> dict[str, dict[str, list[Sample]]]:
    """The samples of every page in the finished shards, by split, in the order of their rows."""
    source = {"name": "books", "kind": "html", "path": ".", "min_chars": 0}
    build(BuildRecipe(name="books", heldout=heldout, sources=[source]), out, root=BOOKS)
    pages: dict[str, dict[str, list[Sample]]] = {}
    for split in ("train", "heldout"):
        for sample in samples(out, split=split):
            pages.setdefault(sample.url or "", {"train": [], "heldout": []})[split].append(sample)
    return pages


def test_the_shards_hold_every_book_whole_in_reading_order(tmp_path):
    built = build_books(tmp_path, heldout=0)
    wanted = given = 0
    for page in PAGES:
        expected = page_as_it_should_be(page)
        made = page_as_it_is(built[page.relative_to(BOOKS).as_posix()]["train"])
        pictures = [e for e in expected if isinstance(e, bytes)]
        wanted += len(pictures)
        given += _common_in_order(pictures, [e for e in made if isinstance(e, bytes)])
        assert made == expected
    assert wanted > 150
    assert given >= 0.99 * wanted


def test_held_out_parts_are_taken_out_of_the_order_of_the_page_and_nothing_is_lost(tmp_path):
    whole, parted = build_books(tmp_path / "a", heldout=0), build_books(tmp_path / "b", heldout=0.2)
    held = 0
    for page in PAGES:
        name = page.relative_to(BOOKS).as_posix()
        order = [e for e in page_as_it_is(whole[name]["train"]) if isinstance(e, bytes)]
        of = {
            split: [e for e in page_as_it_is(found) if isinstance(e, bytes)]
            for split, found in parted[name].items()
        }
        assert sorted(order) == sorted(of["train"] + of["heldout"])
        assert not set(of["train"]) & set(of["heldout"])
        assert [e for e in order if e in set(of["heldout"])] == of["heldout"]
        assert [e for e in order if e in set(of["train"])] == of["train"]
        held += len(of["heldout"])
    assert held
