"""Paragraphs that pages of one host share, against a count by hand over the pages as they were written."""

import io
import random
from collections import defaultdict
from pathlib import Path

import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from data_pipeline.build.filter import boilerplate
from data_pipeline.build.recipe import BuildRecipe
from data_pipeline.build.run import build
from data_pipeline.view import samples

MOST = 2
COOKIES = "This site uses cookies to give you the best experience."
SUBSCRIBE = "Subscribe to our newsletter, it is free of charge."


def write_crawl(path: Path, pages: list[tuple[str, list[str]]]) -> None:
    with path.open("wb") as f:
        writer = WARCWriter(f, gzip=True)
        for url, paragraphs in pages:
            body = "<html><body>" + "".join(f"<p>{p}</p>" for p in paragraphs) + "</body></html>"
            head = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
            payload = io.BytesIO(body.encode())
            writer.write_record(
                writer.create_warc_record(url, "response", payload=payload, http_headers=head)
            )


def pages_of(seed: int) -> list[tuple[str, list[str]]]:
    """Three hosts; some paragraphs are shared by few, some by many pages, some pages were captured twice."""
    chance = random.Random(seed)
    found = []
    for host in ("a.org", "b.org", "c.org"):
        for n in range(12):
            text = [f"Story {n} of {host} has words of its own, as many as it needs.", COOKIES]
            text += [SUBSCRIBE.upper() if n % 2 else SUBSCRIBE] * (host == "a.org")
            text += ["Two pages of this host say this together."] * (n < MOST)
            text += [f"Remark {chance.randrange(6)}."]
            found.append((f"http://{host}/{n}", text))
    # The same page under many addresses is one document: its own text is no boilerplate.
    found += [(f"http://d.org/page?visitor={n}", ["The one page of this host.", COOKIES]) for n in range(6)]
    chance.shuffle(found)
    return found


def recipe(tasks: int, **filters) -> BuildRecipe:
    source = {"name": "web", "kind": "warc", "path": "crawl", "max_chars": 10_000}
    filters = {"max_paragraph_count": MOST, **filters}
    page = {"name": "t", "tasks": tasks, "heldout": 0, "filters": filters, "sources": [source]}
    return BuildRecipe.model_validate(page)


def by_hand(pages: list[tuple[str, list[str]]]) -> dict[tuple[str, str], int]:
    """How many captures must hold each paragraph of a host afterwards."""
    holders = defaultdict(list)
    for url, paragraphs in pages:
        host = url.split("/")[2]
        for p in paragraphs:
            holders[host, p.lower()].append(tuple(paragraphs))
    return {k: len(texts) if len(set(texts)) <= MOST else 1 for k, texts in holders.items()}


def shown(out: Path) -> dict[tuple[str, str], int]:
    found = defaultdict(int)
    for sample in samples(out):
        for paragraph in sample.text.split("\n"):
            found[sample.domain, paragraph.lower()] += 1
    return dict(found)


@pytest.fixture
def crawl(tmp_path) -> list[tuple[str, list[str]]]:
    pages = pages_of(0)
    (tmp_path / "crawl").mkdir()
    write_crawl(tmp_path / "crawl" / "one.warc.gz", pages[: len(pages) // 2])
    write_crawl(tmp_path / "crawl" / "two.warc.gz", pages[len(pages) // 2 :])
    return pages


def test_a_paragraph_of_many_pages_of_a_host_stays_in_one_of_them(tmp_path, crawl):
    out = tmp_path / "out"
    build(recipe(2), out, root=tmp_path)
    expected = by_hand(crawl)
    assert expected["a.org", COOKIES.lower()] == expected["a.org", SUBSCRIBE.lower()] == 1
    assert expected["a.org", "two pages of this host say this together."] == 2
    assert expected["d.org", COOKIES.lower()] == 6
    assert shown(out) == expected
    lineage = [line for s in samples(out) for line in s.lineage or ()]
    assert {line["reason"] for line in lineage} == {"repeated on its host"}
    assert not (out / "work" / "web").exists()


def test_without_the_key_nothing_is_counted_and_nothing_leaves(tmp_path, crawl):
    out = tmp_path / "out"
    build(recipe(2, max_paragraph_count=None), out, root=tmp_path)
    assert shown(out)["a.org", COOKIES.lower()] == 12
    assert not (out / "cache" / "paragraphs").exists()


def test_the_number_of_tasks_changes_nothing_in_what_is_shown(tmp_path, crawl):
    for tasks in (1, 3):
        build(recipe(tasks), tmp_path / f"out{tasks}", root=tmp_path)
    one, three = (sorted((s.id, s.text) for s in samples(tmp_path / name)) for name in ("out1", "out3"))
    assert one == three


def test_what_a_killed_count_left_is_taken_up_and_gives_the_same_dataset(tmp_path, crawl, monkeypatch):
    whole = build(recipe(2), tmp_path / "whole", root=tmp_path)
    chunks = boilerplate._chunks

    def dies(file):
        raise KeyboardInterrupt

    monkeypatch.setattr(boilerplate, "_chunks", dies)
    with pytest.raises(KeyboardInterrupt):
        build(recipe(2), tmp_path / "broken", root=tmp_path)
    assert not list((tmp_path / "broken").glob("cache/paragraphs/*"))
    monkeypatch.setattr(boilerplate, "_chunks", chunks)
    counted = {p: p.stat().st_mtime_ns for p in (tmp_path / "broken").glob("work/*/counted/*")}
    assert len(counted) == 2
    assert build(recipe(2), tmp_path / "broken", root=tmp_path).digest == whole.digest


def test_what_a_run_that_died_while_it_cleared_away_left_is_gone_in_the_end(tmp_path, crawl, monkeypatch):
    def dies(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(boilerplate.shutil, "rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        build(recipe(2), tmp_path / "out", root=tmp_path)
    assert list((tmp_path / "out").glob("work/*/counted/*"))
    monkeypatch.undo()
    build(recipe(2), tmp_path / "out", root=tmp_path)
    assert not (tmp_path / "out/work").exists()


def test_a_local_tree_counts_as_one_host_and_pictures_stay(tmp_path):
    for n in range(5):
        (tmp_path / "crawl").mkdir(exist_ok=True)
        text = f"<p>Page number {n} of the tree speaks for itself.</p><p>{COOKIES}</p>"
        (tmp_path / "crawl" / f"{n}.html").write_text(f"<html><body>{text}</body></html>")
    page = recipe(2).model_dump()
    page["sources"] = [{"name": "web", "kind": "html", "path": "crawl"}]
    build(BuildRecipe.model_validate(page), tmp_path / "out", root=tmp_path)
    assert sum(COOKIES in s.text for s in samples(tmp_path / "out")) == 1
