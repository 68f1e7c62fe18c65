"""The walk in C against the walk in Python: two programs, one answer."""

import gc
import importlib.util
import random
import shutil
import sys
import sysconfig
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from selectolax.lexbor import LexborHTMLParser

from data_pipeline.build.read import dom_walk
from data_pipeline.build.read.compile_walk import compile_walk, source_sum
from data_pipeline.build.read.dom_decode import decode
from data_pipeline.build.read.dom_tables import PRE
from data_pipeline.build.read.dom_walk import PlainWalk
from site_pages import Site

BOOKS = Path(__file__).parents[3] / "../shared/realdata/html_gutenberg"
TAGS = """
a article b blockquote br div em figcaption figure form h1 h4 i img li nav noscript p picture pre script
section source span svg table td th tr u ul
""".split()  # noqa: SIM905
ATTRIBUTES = [
    *('class="share x"', 'class="post"', "class", "hidden", 'style="display: none"', 'style="color: red"'),
    *('id="menu"', 'id="p1"', 'role="search"', 'aria-hidden="true"', 'href="/a"', 'name="n"'),
    *('src="/a.jpg"', 'data-src="/b.jpg"', 'srcset="/c.jpg 640w, /d.jpg 1280w"', 'src="/blank.gif"'),
]
TEXTS = [
    "words",
    " ",
    "\n\t",
    "&nbsp;",
    "\u3000",
    "\x1c",
    "\x85",
    "\u201cquoted\u201d  text",
    "\U0001f600",
    "More",
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The module of `_walk.c`, compiled for this test."""
    if not shutil.which("gcc") or not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("no gcc, or no Python.h")
    target = tmp_path_factory.mktemp("compiled") / "_walk.abi3.so"
    assert compile_walk(target) == ""
    return loaded("data_pipeline.build.read._walk", target)


def loaded(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reader(walk, monkeypatch):
    """What `read_page` finds where this is the walk: a name and values for each block."""
    monkeypatch.setattr(dom_walk, "Walk", walk)
    dom = loaded("data_pipeline.build.read.dom", Path(dom_walk.__file__).with_name("dom.py"))
    assert issubclass(dom._Walk, walk)
    return lambda page: [(type(b).__name__, *b) for b in dom.read_page(page, "https://h.org/a/b").blocks]


def made_up(rng: random.Random) -> str:
    """Tags that are opened and closed without sense."""
    parts = []
    for _ in range(rng.randint(5, 120)):
        tag = rng.choice(TAGS)
        given = " ".join(rng.sample(ATTRIBUTES, rng.choice([0, 0, 1, 1, 2])))
        parts.append(rng.choice([f"<{tag} {given}>", f"<{tag}>", f"</{tag}>", rng.choice(TEXTS)]))
    return "".join(parts)


def test_both_walks_read_invented_sites_broken_pages_and_deep_ones_alike(compiled, monkeypatch):
    plain, fast = reader(PlainWalk, monkeypatch), reader(compiled.Walk, monkeypatch)
    rng = random.Random(5)
    pages = [decode(Site(n).page(size)) for n in range(3) for size in range(5_000, 50_001, 5_000)]
    pages += [made_up(rng) for _ in range(1500)]
    pages += ["<div>" * 400 + "deep" + "</div>x" * 400, "", "<body>", "<p>" * 3000]
    kinds = set()
    for page in pages:
        assert fast(page) == plain(page), page
        kinds |= {block[0] for block in plain(page)}
    assert kinds == {"Text", "Image"}


@pytest.mark.skipif(not BOOKS.is_dir(), reason="no ../shared/realdata beside the repository")
def test_both_walks_read_every_real_book_alike(compiled, monkeypatch):
    plain, fast = reader(PlainWalk, monkeypatch), reader(compiled.Walk, monkeypatch)
    for path in sorted(BOOKS.glob("*/*.htm*")):
        page = decode(path.read_bytes())
        found = plain(page)
        assert len(found) > 10
        assert fast(page) == found, path


def test_an_error_in_a_subclass_ends_the_walk_and_lets_go_of_its_nodes(compiled):
    tree = LexborHTMLParser("<div><div><div><pre>x</pre></div></div></div>")
    held = sys.getrefcount(tree)  # each node holds its tree
    for walk in (PlainWalk, compiled.Walk):

        class Fails(walk):
            def enter(self, node, kind, attributes):
                raise LookupError(kind)

            def leave(self, kind):
                raise AssertionError(kind)

        with pytest.raises(LookupError, match=str(PRE)) as raised:
            Fails().below(tree.body)
        del raised
        gc.collect()
        assert sys.getrefcount(tree) == held


@pytest.mark.parametrize("root", [None, 3, SimpleNamespace(first_child=None), LexborHTMLParser("<p>")])
def test_what_is_no_node_is_an_error_and_no_crash(root, compiled):
    with pytest.raises(TypeError, match="descriptor"):
        compiled.Walk().below(root)


def test_a_compiled_walk_is_taken_where_it_is_of_this_source_and_of_no_other(compiled, monkeypatch):
    name = "data_pipeline.build.read._walk"
    monkeypatch.setitem(sys.modules, name, compiled)
    assert dom_walk._compiled() is compiled.Walk
    monkeypatch.setattr(dom_walk, "source_sum", lambda: source_sum() ^ 1)
    assert dom_walk._compiled() is None
    monkeypatch.setitem(sys.modules, name, None)
    assert dom_walk._compiled() is None


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_where_nothing_compiles_the_reason_is_said_and_nothing_is_left(compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", compiler)
    assert compiler in compile_walk(tmp_path / "_walk.abi3.so")
    assert list(tmp_path.iterdir()) == []
