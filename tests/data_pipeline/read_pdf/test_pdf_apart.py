"""Pages that would take hours, or end the library, end the process that reads them, and nothing else."""

import signal
import time
import zlib
from pathlib import Path

import psutil
import pytest

from data_pipeline.build.read import pdf_apart
from data_pipeline.build.read.pdf import PdfOptions, read_pdf_bytes
from data_pipeline.build.read.pdf_apart import read_pdf
from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.build.run import build
from data_pipeline.errors import TransientError
from data_pipeline.view import samples

REAL = Path(__file__).parents[3] / "../shared/realdata/pdf"
DEPTH, FAN = 9, 10  # a thousand million forms


def stream(data: bytes, about: bytes = b"") -> bytes:
    packed = zlib.compress(data, 9)
    return b"<<%s/Filter/FlateDecode/Length %d>>stream\n%s\nendstream" % (about, len(packed), packed)


def laughing(bombs: tuple[int, ...], pages: int) -> bytes:
    """A PDF in which the pages `bombs` draw a form that draws ten forms that draw ten forms ..."""
    first = 4  # forms, then pages with their contents
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", b"", b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    for k in range(DEPTH):
        last = k == DEPTH - 1
        resources = b"" if last else b"/Resources<</XObject<</F %d 0 R>>>>" % (first + k + 1)
        about = b"/Type/XObject/Subtype/Form/BBox[0 0 200 200]" + resources
        objects.append(stream(b"0 0 9 9 re f" if last else b"/F Do " * FAN, about))
    kids = []
    for n in range(pages):
        number = len(objects) + 1
        kids.append(b"%d 0 R" % number)
        resources = b"/Font<</T 3 0 R>>/XObject<</F %d 0 R>>" % first
        draws = b"/F Do" if n in bombs else b"BT /T 12 Tf 20 100 Td (Page %d is sound.) Tj ET" % n
        about = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Contents %d 0 R/Resources<<%s>>>>"
        objects += [about % (number + 1, resources), stream(draws)]
    objects[1] = b"<</Type/Pages/Kids[%s]/Count %d>>" % (b" ".join(kids), pages)
    out, places = b"%PDF-1.5\n", []
    for n, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (n, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(places) + 1, table)
    tail = b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(places) + 1, len(out))
    return out + head + tail


QUICK = PdfOptions(page_seconds=1, dpi=18)


def read(data: bytes, options: PdfOptions = QUICK) -> list:
    return list(read_pdf(data, "a.pdf", source="s", options=options))


@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/realdata beside the repository")
@pytest.mark.parametrize("embedded", [False, True])
def test_real_files_give_the_same_in_a_process_of_their_own(embedded):
    options = PdfOptions(embedded_images=embedded, dpi=36)
    for file in sorted(REAL.glob("*.pdf"))[:4]:
        data, about = file.read_bytes(), {"source": "s", "licence": "L", "url": "http://h.org/a.pdf"}
        here = list(read_pdf_bytes(data, file.name, options=options, **about))
        assert list(read_pdf(data, file.name, options=options, **about)) == here
        assert here


@pytest.mark.parametrize("data", [b"", b"no pdf", b"%PDF-1.4 broken"])
def test_files_that_cannot_be_opened_are_the_same_faults(data):
    assert read(data) == list(read_pdf_bytes(data, "a.pdf", source="s"))


def test_a_page_that_takes_for_ever_is_a_fault_and_those_around_it_are_read():
    data = laughing((1,), 4)
    assert len(data) < 5000
    began = time.monotonic()
    items = read(data)
    assert time.monotonic() - began < 300
    assert [i.sample is not None for i in items] == [True, False, True, True]
    fault = items[1].fault
    assert (fault.reason, fault.where, fault.bad) == ("page takes too long", "page 2", True)
    assert [i.sample.text for i in items if i.sample] == [f"Page {n} is sound." for n in (0, 2, 3)]


def test_a_file_of_such_pages_is_given_up():
    faults = [i.fault for i in read(laughing(tuple(range(9)), 9))]
    assert [f.where for f in faults] == ["page 1", "page 2", "page 3 and all that follow"]


def stopped(pages: int) -> tuple:
    """The pages of a file, the first of which is read, and the process, before it has read another file."""
    items = read_pdf(laughing((), pages), "a.pdf", source="s", options=PdfOptions(dpi=600, page_pixels=10**7))
    assert next(items).sample.text == "Page 0 is sound."
    return items, pdf_apart._Child._running[1].process


def test_a_library_that_crashes_costs_its_page():
    items, process = stopped(8)  # their images are more than the pipe holds
    process.send_signal(signal.SIGSEGV)
    rest = list(items)
    (lost,) = [i.fault for i in rest if i.fault]
    assert (lost.reason, lost.detail) == ("page ends the PDF library", "signal SIGSEGV")
    assert len(rest) == 7
    assert rest[-1].sample.text == "Page 7 is sound."


def test_a_process_that_is_killed_from_outside_costs_no_page_but_the_run():
    items, process = stopped(8)
    process.kill()
    with pytest.raises(TransientError, match="repeat the same command"):
        list(items)
    assert read(laughing((), 3))[2].sample.text == "Page 2 is sound."


def test_what_is_left_unread_leaves_nothing_for_the_next_file_and_no_process():
    before = {p.pid for p in psutil.Process().children()}  # of tests before this one
    items = read_pdf(laughing((), 3), "a.pdf", source="s", options=QUICK)
    next(items)
    items.close()
    assert [i.sample.text for i in read(laughing((), 1))] == ["Page 0 is sound."]
    mine = [p for p in psutil.Process().children() if "pdf_apart" in " ".join(p.cmdline())]
    assert len({p.pid for p in mine} - before) <= 1


def test_a_build_with_such_a_page_ends_and_counts_it(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.pdf").write_bytes(laughing((1,), 3))
    source = {"name": "papers", "kind": "pdf", "path": "in", "page_seconds": 1, "dpi": 36}
    page = {"name": "t", "tasks": 1, "heldout": 0, "bad_inputs": "drop", "sources": [source]}
    manifest = build(BuildRecipe.model_validate(page), tmp_path / "out", root=tmp_path)
    assert manifest.funnel["papers"].dropped == {"page takes too long": 1}
    assert len(list(samples(tmp_path / "out"))) == 2
