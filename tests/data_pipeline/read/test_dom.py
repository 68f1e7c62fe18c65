"""Pages made by hand: what is content, in which order, and which address an image has."""

import time
import tracemalloc
from urllib.parse import urljoin

import pytest

from data_pipeline.build.read.dom import Image, Text, read_page
from data_pipeline.build.read.dom_decode import decode
from data_pipeline.build.read.dom_facts import directives
from data_pipeline.build.read.dom_image import absolute, candidates, from_data_uri, from_srcset
from data_pipeline.build.read.dom_tame import MAX_DEPTH, tame

URL = "https://h.org/a/b.html"
GIF = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def texts(page: str) -> list[str]:
    return [b.text for b in read_page(page, URL).blocks if isinstance(b, Text)]


def images(page: str) -> list[str]:
    """The best address of each image."""
    return [b.urls[0] for b in read_page(page, URL).blocks if isinstance(b, Image)]


def shape(page: str) -> list[str]:
    return [b.text if isinstance(b, Text) else f"<{b.urls[0]}>" for b in read_page(page, "").blocks]


@pytest.mark.parametrize(
    "furniture",
    [
        "<nav>X</nav>",
        "<footer>X</footer>",
        "<form><p>X</p><input></form>",
        "<script>X</script><style>X</style>",
        "<p hidden>X</p>",
        "<div aria-hidden=true>X</div>",
        "<div style='color:red; display : none'>X</div>",
        "<span style='visibility:hidden'>X</span>",
        "<div role=navigation>X</div><div role=banner>X</div><div role=dialog>X</div>",
        "<div role=contentinfo>X</div>",
        "<div class='big cookie-banner'>X</div>",
        "<ul class='share-buttons'><li>X</ul>",
        "<ol id=breadcrumbs><li>X</ol>",
        "<aside class='sidebar'>X<img src=x.png></aside>",
        "<div class='related-posts'><h3>X</h3><div><div>X</div></div></div>",
        "<template>X</template><select><option>X</select><button>X</button><svg><text>X</text></svg>",
        "<!-- X --><noscript>X</noscript>",
    ],
)
def test_furniture_is_left_out_and_what_stands_around_it_stays(furniture):
    assert shape(f"<p>before</p>{furniture}<p>after</p>") == ["before", "after"]


@pytest.mark.parametrize(
    "content",
    [
        "<p aria-hidden=false>X</p>",
        "<p style='display:block'>X</p>",
        "<p class='shareholders sidebars related-work'>X</p>",
        "<article class=sidebar>X</article>",
        "<main id=menu>X</main>",
        "<aside>X</aside>",
        "<header>X</header>",
        "<div class=advert>X</div>",
    ],
)
def test_what_only_resembles_furniture_stays(content):
    assert shape(f"<p>before</p>{content}") == ["before", "X"]


def test_a_form_around_the_whole_page_is_the_page():
    assert texts("<form id=aspnetForm><h1>T</h1><p>one<input value=2><p>two</form>") == ["T", "one", "two"]


def test_text_of_a_hidden_inline_node_leaves_the_sentence_whole():
    assert texts("<p>one <span class=sr-only>opens in a new window</span>two</p>") == ["one two"]


def test_blocks_end_at_both_tags_and_mixed_text_keeps_its_order():
    page = "<div>one<p>two <b>bold</b></p>three<ul><li>a<ul><li>b</ul>c<li>d</ul>four<br>five</div>six"
    assert texts(page) == ["one", "two bold", "three", "a", "b", "c", "d", "four five", "six"]


def test_tables_come_row_by_row_and_headings_are_known():
    page = "<h2>T</h2><table><tr><th>a<th>b<tr><td>1<td>2</table><h4>u</h4>"
    found = [(b.text, b.heading) for b in read_page(page).blocks]
    assert found == [("T", True), ("a b", False), ("1 2", False), ("u", False)]


def test_preformatted_text_keeps_its_lines():
    assert texts("<p>a\n  b</p><pre>\n\ndef f():\n\treturn  1  \n<b>x</b><br>y\n\n</pre><p>c\nd") == [
        "a b",
        "def f():\n    return  1\nx\ny",
        "c d",
    ]


def test_runs_of_white_space_are_one_blank_also_across_nodes_and_long_pages():
    page = "<p>  a <b>  b </b>\n\t c&nbsp; d\f</p> \n <p>\u201cé \r  x\u201d</p><td> <td>&#8195;</td> "
    assert texts(page) == ["a b c d", "\u201cé x\u201d"]
    assert texts(page * 500) == ["a b c d", "\u201cé x\u201d"] * 500


def test_no_page_can_forge_the_mark_between_blocks():
    assert texts("<p>a\0b&#0;c\0</p><pre>\0d\n\0e</pre><xmp>f\0</xmp>g\0") == [
        "ab\ufffdc",
        "d\ne",
        "f\ufffd",
        "g",
    ]


def test_links_that_come_three_times_are_furniture_and_a_sentence_is_not():
    card = "<div><h3><a href=1>Title %d</a></h3><p>Words of it.</p><p><a href=2>Read more</a></p></div>"
    page = "".join(card % n for n in range(3))
    assert texts(page) == [t for n in range(3) for t in (f"Title {n}", "Words of it.")]
    assert texts("<p>Nevermore.</p>" * 4) == ["Nevermore."] * 4
    assert texts("<p><a name=x>Refrain</a></p>" * 4) == ["Refrain"] * 4
    assert texts("<p><a href=2>Read more</a></p>" * 2) == ["Read more"] * 2
    assert texts("<p><a href=2>Read more</a> of it</p>" * 3) == ["Read more of it"] * 3
    assert texts("<pre><a href=2>Read  more</a></pre>" * 3) == []
    assert texts("<pre><a href=2>Read  more</a></pre>" * 2 + "<p><a href=2>Read more</a></p>") == [
        "Read  more",
        "Read  more",
        "Read more",
    ]


def test_a_figure_caption_follows_its_image_also_where_the_page_shows_it_above():
    below = "<figure><img src=a.png alt='the  alt'><figcaption>cap <i>a</i></figcaption></figure>after"
    above = "<figure><figcaption>cap <i>a</i></figcaption><img src=a.png alt='the alt'></figure>after"
    for page in (below, above):
        assert read_page(page).blocks == [
            Image(("a.png",), "the alt"),
            Text("cap a", caption=True),
            Text("after"),
        ]
    two = (
        "<figure><img src=a><figcaption>A</figcaption></figure><figure><figcaption>B</figcaption><img src=b>"
    )
    assert shape(two) == ["<a>", "A", "<b>", "B"]
    nested = f"<figure><figcaption>C</figcaption>{two}</figure></figure>"
    assert shape(f"<p>0</p>{nested}<p>1</p>") == ["0", "<a>", "A", "<b>", "B", "C", "1"]
    lines = "<figure><figcaption>D<pre> e\n  f</pre></figcaption><img src=d></figure>"
    assert shape(f"<pre>x</pre>{lines}") == ["x", "<d>", "D", " e\n  f"]


@pytest.mark.parametrize(
    ("tag", "best"),
    [
        ("<img src=x.png>", "https://h.org/a/x.png"),
        ("<img src=/x.png>", "https://h.org/x.png"),
        ("<img src=//c.net/x.png>", "https://c.net/x.png"),
        ("<img src=../x.png?q=1>", "https://h.org/x.png?q=1"),
        ("<img src='http://[bad'>", "http://[bad"),
        ("<img data-src=x.png>", "https://h.org/a/x.png"),
        (f"<img src='{GIF}' data-original=x.png>", "https://h.org/a/x.png"),
        ("<img src=/i/blank.gif data-lazy-src=x.png>", "https://h.org/a/x.png"),
        ("<img src=/i/Spacer.GIF?1 data-lazy-src=x.png>", "https://h.org/a/x.png"),
        ("<img src=s.png srcset='m.png 640w, l.png 1600w, xxl.png 4000w'>", "https://h.org/a/l.png"),
        ("<img src=s.png srcset='m.png, l.png 2x,xl.png 3x'>", "https://h.org/a/l.png"),
        ("<img src=s.png srcset='/r/w_400,c_fit/m.png 400w, /r/w_800,c_fit/l.png 800w'>",
         "https://h.org/r/w_800,c_fit/l.png"),
        (f"<img src='{GIF}' data-srcset='a.png 100w, b.png 200w'>", "https://h.org/a/b.png"),
        ("<picture><source type=image/avif srcset=a.avif><source srcset='b.webp 900w' type=image/webp>"
         "<img src=c.png></picture>", "https://h.org/a/b.webp"),
    ],
)  # fmt: skip
def test_the_best_address_of_an_image(tag, best):
    assert images(f"<p>one</p>{tag}") == [best]


def test_every_candidate_is_kept_for_a_crawl_that_holds_another():
    (image,) = read_page("<img src=s.png data-src=d.png srcset='m.png 640w, l.png 1600w'>").blocks
    assert image.urls == ("l.png", "d.png", "s.png", "m.png")


@pytest.mark.parametrize(
    "page",
    [
        "<img class=lazy data-src=x.jpg><noscript><img src=x.jpg></noscript>",
        f"<img class=lazy src='{GIF}'><noscript><img src=x.jpg></noscript>",
        "<noscript><img src=x.jpg></noscript><img class=lazy data-src=x.jpg>",
        "<figure><figcaption>c</figcaption><img data-src=x.jpg></figure><noscript><img src=x.jpg></noscript>",
        "<noscript><img src=x.jpg alt=a></noscript>",
        "<img src=x.jpg><noscript><img src='https://t.co/p' width=1 height=1></noscript>",
    ],
)
def test_a_lazy_image_and_its_fallback_are_one_image(page):
    assert images(f"<p>one</p>{page}<p>two</p>") == ["https://h.org/a/x.jpg"]


def test_the_page_says_what_it_is():
    page = (
        "<html lang=en-GB><title> A  title </title><base href=/base/>"
        "<meta name=Robots content='NoIndex, follow'>"
        "<meta name=robots content='noai,noimageai'><meta name=tdm-reservation content=1>"
        "<link rel=canonical href=https://h.org/c><body><img src=x.png>"
    )
    facts = read_page(page, URL).facts
    assert (facts.title, facts.lang, facts.canonical) == ("A title", "en-GB", "https://h.org/c")
    assert facts.robots == {"noindex", "noai", "noimageai"}
    assert facts.tdm_reserved
    assert images(page) == ["https://h.org/base/x.png"]
    assert read_page("<p>x").facts.robots == frozenset()
    assert directives("somebot: noai, max-snippet:-1, nofollow") == {"noai"}


def test_data_uris_are_decoded_under_a_cap_and_only_images_of_known_formats():
    data = from_data_uri(GIF, 1000)
    assert isinstance(data, bytes)
    assert data.startswith(b"GIF89a")
    assert from_data_uri("data:image/png,%89PNG%0D%0A%1A%0A", 100) == b"\x89PNG\r\n\x1a\n"
    assert from_data_uri(GIF.rstrip("="), 1000) == data, "as browsers, without the padding"
    for refused in ("data:image/svg+xml,<svg/>", "data:text/html,x", "data:image/png;base64,AA", "data:x"):
        assert isinstance(from_data_uri(refused, 1000), str)
    assert "more than 10 bytes" in from_data_uri(GIF, 10)


def test_fast_joining_is_urljoin():
    for base in (URL, "http://h.org", "https://h.org:8080/x/?q#f", "https://u:p@h/x/y/"):
        for reference in (
            "/a.png",
            "/a/../b.png",
            "a.png",
            "//x/y",
            "?q",
            "#f",
            "",
            "/",
            "../../../z",
            "/.x",
        ):
            assert absolute(reference, base) == urljoin(base, reference), (base, reference)


def test_srcset_without_sense_gives_no_candidate_and_takes_no_time():
    started = time.process_time()
    for value in ("", ",,,", "a (", "x " * 50_000, "(" * 50_000, ", a 1w" * 20_000):
        from_srcset(value)
        candidates({"src": "x", "srcset": value})
    assert time.process_time() - started < 20


@pytest.mark.parametrize(
    ("data", "header", "text"),
    [
        ("ä€".encode(), "", "ä€"),
        ("\ufeffä".encode(), "text/html; charset=iso-8859-1", "ä"),
        ("\ufeffä".encode("utf-16-le"), "", "ä"),
        ("привет".encode("cp1251"), "text/html; charset=windows-1251", "привет"),
        (b"<meta charset=koi8-r>" + "привет".encode("koi8-r"), "", "<meta charset=koi8-r>привет"),
        ("日本".encode("shift_jis"), "text/html; charset=Shift_JIS", "日本"),
        ("日本".encode("iso2022_jp"), "text/html; charset=iso-2022-jp", "日本"),
        ("日本".encode(), "text/html; charset=iso-2022-jp", "日本"),
        ("日本".encode("shift_jis") * 200 + b"\x81", "text/html;charset=shift_jis", "日本" * 200 + "\ufffd"),
        ("“ä”".encode("cp1252"), "text/html; charset=iso-8859-1", "“ä”"),
        (b"\xe4", "text/html; charset=punycode", "ä"),
        (b"\xe4\\x41", "text/html; charset=unicode_escape", "ä\\x41"),
    ],
)
def test_bytes_become_text_by_mark_header_declaration_or_what_they_are(data, header, text):
    assert decode(data, header) == text


@pytest.mark.parametrize(
    "page",
    [
        "<div>" * 50_000 + "deep<img src=x.png>" + "</div>" * 50_000,
        "<b>" * 50_000 + "deep<img src=x.png>",
        "<p " + " ".join(f"a{n}=1" for n in range(1_000_000)) + ">deep<img src=x.png>",
        "<p " + " ".join(f"""b{n}="<>'" """ for n in range(100_000)) + ">deep<img src=x.png>",
        "".join(f"<font a{n}><p>" for n in range(20_000)) + "deep<img src=x.png>",
        "<a href=x><div>" * 30_000 + "deep<img src=x.png>",
        "<ul><li>" * 30_000 + "deep<img src=x.png>",
        "<table><tr><td>" * 20_000 + "deep<img src=x.png>",
        "<figure><figcaption>" * 20_000 + "deep<img src=x.png>",
    ],
    ids=["div", "b", "attributes", "quoted", "font", "a", "li", "table", "figure"],
)
def test_pages_made_to_hurt_are_read_in_linear_time_and_lose_no_text(page):
    tracemalloc.start()
    started = time.process_time()
    blocks = read_page(page).blocks
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [b.urls for b in blocks if isinstance(b, Image)] == [("x.png",)]
    assert [b.text for b in blocks if isinstance(b, Text)] == ["deep"]
    assert seconds < 40
    assert peak < 200 * 2**20


@pytest.mark.parametrize(
    "part", ["<!--", "<p <p ", "<a b='", '<a b="', "<script", "</", "<p a=\"'", "<a/ b= ="]
)
def test_taming_takes_linear_time_on_tags_that_never_end(part):
    started = time.process_time()
    tame(part * 40_000)
    assert time.process_time() - started < 20


def test_taming_leaves_a_long_ordinary_page_as_it_is():
    page = "<div><p class=x>one <b>two</b> <a href='a>b'>three</a></div>\n<!-- <div><div> -->" * 3000
    assert len(page) > 65_536
    assert tame(page) == page.encode()
    script = "<script>if(a<b)c<d;</script>" * 5000 + "<div><section>x</section></div>"
    assert tame(script) == script.encode()
    assert b"<div>" * (MAX_DEPTH + 1) not in tame("<div>" * 20_000)
