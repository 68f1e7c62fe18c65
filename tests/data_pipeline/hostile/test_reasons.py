"""Every hostile input ends with its own counted reason or is kept."""

import os
from pathlib import Path

import pytest

from hostile.documents import crawls, pages, pdfs
from hostile.images import IMAGES, KEPT, REFERENCES
from hostile.rows import rows
from hostile.tars import tars


def told(table: dict[str, list[str]]) -> dict[str, list[str]]:
    """What a table of files says is left out."""
    left_out = {file: sorted(r for r in reasons if r != KEPT) for file, reasons in table.items()}
    return {file: reasons for file, reasons in left_out.items() if reasons}


def test_the_corpus_has_far_more_than_thirty_kinds():
    tables = IMAGES, REFERENCES, tars(Path("x")), rows(), pages(), crawls(), pdfs()
    assert sum(map(len, tables)) > 90


def test_every_image_ends_with_its_reason_or_is_kept(built):
    assert built.reasons("images") == told({name: [reason] for name, (_, reason) in IMAGES.items()})
    kept = {s.media[0].url: s for s in built.samples if s.source == "images"}
    assert sorted(kept) == sorted(n for n, (_, reason) in IMAGES.items() if reason == KEPT)
    for name, sample in kept.items():
        assert sample.image_bytes == (IMAGES[name][0],), "the bytes are kept as they are"


def test_every_reference_that_is_no_file_of_the_source_is_refused(built):
    found = {d["where"]: d["class"] for d in built.dropped if d["source"] == "references"}
    assert found == {f"line {n}": reason for n, reason in enumerate(REFERENCES.values(), start=1)}
    assert built.kept("references") == []


@pytest.mark.parametrize("source", ["tars", "rows", "pdf"])
def test_every_container_gives_what_is_sound_and_a_reason_for_the_rest(built, source):
    table = {"tars": tars(built.canary), "rows": rows(), "pdf": pdfs()}[source]
    expected = {name: reasons for name, (_, reasons) in table.items()}
    assert built.reasons(source) == told(expected)
    kept = {name: r.count(KEPT) for name, r in expected.items() if KEPT in r}
    found = built.kept(source)
    assert {name: found.count(name) for name in set(found)} == kept


def test_every_crawl_gives_its_sound_pages_and_a_reason_for_the_rest(built):
    expected = {name: reasons for name, (_, reasons) in crawls().items()}
    assert built.reasons("crawl") == told(expected)
    assert len(built.kept("crawl")) == sum(r.count(KEPT) for r in expected.values())


def test_every_page_is_kept_but_for_what_is_none_and_its_pictures_have_reasons(built):
    names = {os.fsencode(n).decode("utf-8", "backslashreplace"): about for n, about in pages().items()}
    assert built.reasons("pages") == told({n: [reason] for n, (_, reason, _) in names.items()})
    # A long page is more than one sample.
    assert sorted({*built.kept("pages")}) == sorted(
        n for n, (_, reason, _) in names.items() if reason == KEPT
    )
    images = built.reasons("pages", "image")
    images["broken-image.html"] = images.pop("short.jpg")  # named by the file that is at fault
    assert images == {n: sorted(cut) for n, (_, _, cut) in names.items() if cut}
