"""What was fetched is not fetched again: not by a second run, another process, or after a kill."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from data_pipeline.build.fetch import cache as cache_module
from data_pipeline.build.fetch.cache import Cache
from data_pipeline.build.fetch.config import FetchConfig
from data_pipeline.build.fetch.fetcher import Fetcher, fetch_all
from data_pipeline.build.fetch.outcome import Record
from data_pipeline.sample import content_id
from waiting import wait_for

CHILD = """
import ipaddress, sys
from data_pipeline.build.fetch.config import FetchConfig
from data_pipeline.build.fetch.fetcher import Fetcher
port, root, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
config = FetchConfig(allow_ports=(port,), per_host_rate=float(sys.argv[4]), per_host_connections=8)
with Fetcher(config, root, allow=[ipaddress.ip_network("127.0.0.1/32")]) as f:
    urls = [f"http://127.0.0.1:{port}/{sys.argv[5]}/{n}?0.02" for n in range(count)]
    print("ready", flush=True)
    sys.stdin.readline()
    for found in f.fetch(urls):
        print(found.media_id, found.reason, flush=True)
"""


def children(number, site, root, count, rate=1e6, path="slow"):
    """Processes that fetch the same URLs, and begin together."""
    command = [sys.executable, "-c", CHILD, str(site.port), str(root), str(count), str(rate), path]
    runs = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(number)
    ]
    assert [run.stdout.readline() for run in runs] == ["ready\n"] * number
    for run in runs:
        run.stdin.write("\n")
        run.stdin.flush()
    return runs


def objects(tmp_path, cache="cache"):
    return [p for p in (tmp_path / cache / "objects").rglob("*") if p.is_file()]


@pytest.mark.parametrize("path", ["/ok", "/status?404", "/header?X-Robots-Tag=noai", "/status?500"])
def test_a_second_run_asks_nothing(site, fetcher, path):
    first = list(fetcher().fetch([site.url(path)]))
    asked = len(site.hits)
    assert list(fetcher().fetch([site.url(path)])) == first
    assert len(site.hits) == asked


def test_a_failure_that_may_pass_is_tried_again_when_its_time_is_over(site, fetcher, monkeypatch):
    url = site.url("/first?500")
    assert next(fetcher(retries=0, remember_failures_s=1000).fetch([url])).reason == "fetch: 5xx"
    assert next(fetcher(retries=0, remember_failures_s=1000).fetch([url])).reason == "fetch: 5xx"
    assert len(site.asked()) == 1
    monkeypatch.setattr(cache_module, "time", SimpleNamespace(time=lambda: time.time() + 1000))
    assert next(fetcher(retries=0).fetch([url])).data == site.picture


def test_an_image_of_many_documents_is_fetched_once(site, fetcher):
    urls = [site.url("/slow?0.1"), site.url("/ok")] * 50
    found = list(fetcher().fetch(urls))
    assert [f.url for f in found] == urls
    assert all(f.data == site.picture for f in found)
    assert len(site.asked()) == 2


def test_results_come_in_the_order_asked(site, fetcher):
    urls = [site.url(f"/slow/{n}?{0.1 if n % 5 == 0 else 0}") for n in range(40)]
    assert [f.url for f in fetcher(per_host_connections=8).fetch(urls)] == urls


def test_urls_are_taken_ahead_but_not_all(site, fetcher):
    taken = []

    def endless():
        n = 0
        while True:
            taken.append(n)
            yield site.url(f"/ok/{n % 7}")
            n += 1

    results = fetcher(connections=2).fetch(endless())
    for _ in range(10):
        next(results)
    assert len(taken) < 30


def test_equal_bytes_are_stored_once_under_their_id(site, fetcher, tmp_path):
    found = list(fetcher().fetch([site.url(f"/ok/{n}") for n in range(5)]))
    assert {f.media_id for f in found} == {content_id(site.picture)}
    (stored,) = objects(tmp_path)
    assert stored.name == content_id(site.picture)
    assert stored.read_bytes() == site.picture


@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
def test_damaged_bytes_are_noticed_and_fetched_again(site, fetcher, tmp_path, damage):
    list(fetcher().fetch([site.url()]))
    (stored,) = objects(tmp_path)
    data = bytearray(stored.read_bytes())
    data[40] ^= 1
    match damage:
        case "flip":
            stored.write_bytes(data)
        case "cut":
            stored.write_bytes(site.picture[:-1])
        case "lose":
            stored.unlink()
    assert next(fetcher().fetch([site.url()])).data == site.picture
    assert len(site.asked()) == 2
    assert stored.read_bytes() == site.picture


@pytest.mark.parametrize(
    "page", [b"", b"{", b"[]", b'{"url": 1}', b'{"url": "x", "reason": "made up"}', b"\xff"]
)
def test_a_damaged_record_is_no_record(site, fetcher, tmp_path, page):
    list(fetcher().fetch([site.url()]))
    for record in (tmp_path / "cache").glob("r*/*/*.json"):
        record.write_bytes(page)
    assert next(fetcher().fetch([site.url()])).data == site.picture
    assert len(site.asked()) == 2


def test_another_policy_is_another_question(site, fetcher):
    site.robots = (200, b"User-agent: *\nDisallow: /")
    assert next(fetcher().fetch([site.url()])).reason == "fetch: robots.txt"
    assert next(fetcher(honour_robots=False).fetch([site.url()])).data == site.picture
    assert next(fetcher().fetch([site.url()])).reason == "fetch: robots.txt"
    assert next(fetcher(honour_robots=False, max_bytes=10).fetch([site.url()])).reason == "fetch: too large"


def test_two_processes_fetch_each_url_once(site, tmp_path):
    runs = children(2, site, tmp_path, 40)
    lines = [run.communicate(timeout=300)[0].split("\n") for run in runs]
    assert lines[0] == lines[1] == [f"{content_id(site.picture)} None"] * 40 + [""]
    paths = [h.path for h in site.asked()]
    assert len(paths) == len(set(paths)) == 40


def test_after_a_kill_only_what_is_missing_is_fetched(site, tmp_path):
    def recorded():
        return len(list((tmp_path / "fetched" / "records").rglob("*.json")))

    (run,) = children(1, site, tmp_path, 40, path="few")
    wait_for(lambda: recorded() > 5 and len(site.asked()) > 15)  # it waits for others then
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    run.stdout.close()
    run.stdin.close()
    site.gate.set()
    wait_for(lambda: all(hit.end for hit in site.hits))
    records = recorded()
    before = len(site.asked())
    (run,) = children(1, site, tmp_path, 40, path="few")
    out, _ = run.communicate(timeout=300)
    assert out.split() == [content_id(site.picture), "None"] * 40
    assert 5 < records < 40
    assert len(site.asked()) - before == 40 - records


def test_a_claim_goes_with_its_process(tmp_path):
    cache = Cache(tmp_path)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready), daemon=True)
    holder.start()
    assert ready.wait(300)
    assert not cache.claim("ab" * 16)
    assert cache.claim("cd" * 16)
    holder.kill()
    holder.join()
    assert cache.claim("ab" * 16)
    cache.close()


def _hold(root, ready):
    assert Cache(root).claim("ab" * 16)
    ready.set()
    time.sleep(600)


def test_records_say_what_was_decided(site, fetcher, tmp_path):
    site.robots = (200, b"User-agent: *\nDisallow: /empty")
    urls = [site.url(p) for p in ("/ok", "/empty", "/status?404", "/header?TDM-Reservation=1")]
    one = fetcher()
    list(one.fetch(urls))
    cache = Cache(tmp_path / "cache")
    records = [cache.record(one._key(u)) for u in urls]
    cache.close()
    assert all(
        isinstance(r, Record) and r.url == u and r.until is None for r, u in zip(records, urls, strict=True)
    )
    assert [r.decision for r in records] == [
        "allowed: robots.txt",
        "refused: robots.txt",
        "allowed: robots.txt",
        "refused: TDM-Reservation",
    ]
    assert records[0].headers == {"Content-Type": "image/png"}
    assert (records[0].status, records[0].nbytes) == (200, len(site.picture))
    assert abs(records[0].time - time.time()) < 600


def test_leaving_early_ends_what_is_under_way(site, tmp_path, fetcher):
    begin = time.monotonic()
    config = FetchConfig(allow_ports=(site.port,), cache="c", timeout_s=400, idle_s=400)
    with Fetcher(config, tmp_path, allow=fetcher()._allow) as leaving:
        for n in range(20):
            leaving.submit(site.url(f"/hang/{n}"))
        time.sleep(0.1)
    assert time.monotonic() - begin < 200


def test_the_cache_can_be_filled_ahead_of_a_build(tmp_path):
    config = FetchConfig()
    urls = ["http://127.0.0.1/x", "ftp://a.test/", "http://10.0.0.1/"]
    assert fetch_all(urls, config, tmp_path) == {"fetch: address refused": 2, "fetch: url refused": 1}
    assert (tmp_path / "fetched" / "records").is_dir()
