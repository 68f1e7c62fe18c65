"""Politeness, measured in the server's own log."""

import fcntl
import itertools
import multiprocessing
import time

from data_pipeline.build.fetch.pace import Pace


def most_at_once(hits):
    return max(sum(h.begin <= t.begin < h.end for h in hits) for t in hits)


def gaps(hits):
    begins = sorted(h.begin for h in hits)
    return [b - a for a, b in itertools.pairwise(begins)]


def test_a_host_is_asked_at_its_rate_and_no_faster(site, fetcher):
    begin = time.time()
    list(fetcher(per_host_rate=20, per_host_connections=4).fetch([site.url(f"/ok/{n}") for n in range(10)]))
    took = time.time() - begin
    # robots.txt is a request too: 11 of them, 50 ms apart.
    assert len(site.hits) == 11
    assert min(gaps(site.hits)) > 0.03
    assert 0.5 <= took < 2


def test_no_more_connections_to_a_host_than_allowed(site, fetcher):
    urls = [site.url(f"/slow/{n}?0.05") for n in range(12)]
    list(fetcher(per_host_connections=3).fetch(urls))
    assert most_at_once(site.asked()) == 3


def test_no_more_connections_in_all_than_allowed(site, fetcher):
    names = [f"h{n}.test" for n in range(12)]
    several = fetcher(connections=4, names=lambda host: ["127.0.0.1"])
    list(several.fetch([site.url("/slow?0.05", host=h) for h in names]))
    assert len(site.asked()) == 12
    assert most_at_once(site.hits) == 4


def test_many_hosts_are_asked_at_one_time(site, fetcher):
    names = [f"h{n}.test" for n in range(20)]
    several = fetcher(per_host_rate=2, names=lambda host: ["127.0.0.1"])
    begin = time.time()
    found = list(several.fetch([site.url("/slow?0.2", host=h) for h in names]))
    assert all(f.data for f in found)
    assert time.time() - begin < 3  # one after another: 20 times 0.7 s


def test_the_crawl_delay_is_kept_within_its_cap(site, fetcher):
    site.robots = (200, b"User-agent: *\nCrawl-delay: 0.2\n")
    list(fetcher().fetch([site.url(f"/ok/{n}") for n in range(3)]))
    assert min(gaps(site.asked())) > 0.15
    site.hits.clear()
    list(fetcher(crawl_delay_s=0.05, cache="c2").fetch([site.url(f"/ok/{n}") for n in range(3)]))
    assert 0.03 < min(gaps(site.asked())) < 0.15


def test_a_host_that_says_when_is_not_asked_before_by_anybody(site, fetcher):
    one = fetcher(per_host_connections=1)
    found = list(one.fetch([site.url("/first?429:1"), *(site.url(f"/ok/{n}") for n in range(3))]))
    assert all(f.data for f in found)
    (gap,) = [g for g in gaps(site.asked()) if g > 0.5]
    assert gap > 0.9


def test_time_in_the_queue_of_a_host_is_not_counted_against_the_deadline(site, fetcher):
    slow = fetcher(per_host_rate=10, timeout_s=0.4)
    assert all(f.data for f in slow.fetch([site.url(f"/ok/{n}") for n in range(12)]))


def test_processes_share_the_rate_of_a_host(tmp_path):
    context = multiprocessing.get_context("fork")
    begin = time.time() + 0.1
    queue = context.Queue()
    runs = [context.Process(target=_take, args=(tmp_path, begin, queue)) for _ in range(3)]
    for run in runs:
        run.start()
    taken = sorted(queue.get(timeout=10) for _ in range(12))
    for run in runs:
        run.join()
    assert all(b - a > 0.045 for a, b in itertools.pairwise(taken))


def _take(root, begin, queue):
    pace = Pace(root)
    time.sleep(max(0, begin - time.time()))
    for _ in range(4):
        while wait := pace.take("a.test", 0.05):
            time.sleep(wait)
        queue.put(time.time())


def test_a_damaged_time_or_a_clock_set_back_stops_nobody(tmp_path):
    pace = Pace(tmp_path)
    assert pace.take("a.test", 0.5) == 0
    assert 0 < pace.take("a.test", 0.5) <= 0.5
    (file,) = (p for p in tmp_path.rglob("*") if p.is_file())
    for text in (b"rubbish", b"nan", b"-inf", b"inf", b"99999999999.0", b"\xff" * 32):
        file.write_bytes(text)
        assert pace.take("a.test", 0.5) == 0, text
        assert 0 < pace.take("a.test", 0.5) <= 0.5


def test_two_processes_cannot_take_one_turn(tmp_path):
    pace = Pace(tmp_path)
    pace.take("a.test", 0)
    (file,) = (p for p in tmp_path.rglob("*") if p.is_file())
    with file.open() as other:  # a lock of another open file, as another process has it
        fcntl.flock(other, fcntl.LOCK_EX)
        assert 0 < pace.take("a.test", 0) < 0.1
    assert pace.take("a.test", 0) == 0
