"""Politeness, measured in the server's own log."""

import fcntl
import multiprocessing
import threading
import time

from data_pipeline.build.fetch.pace import Pace


def most_at_once(hits):
    return max(sum(h.begin <= t.begin < h.end for h in hits) for t in hits)


def none_too_early(times, begin, gap):
    """Whether the n-th of them came no earlier than a rate of one each `gap` seconds allows: how late a busy
    machine notes each does not matter."""
    return all(t > begin + n * gap - 0.01 for n, t in enumerate(sorted(times)))


def test_a_host_is_asked_at_its_rate_and_no_faster(site, fetcher):
    begin = time.time()
    list(fetcher(per_host_rate=20, per_host_connections=4).fetch([site.url(f"/ok/{n}") for n in range(10)]))
    # robots.txt is a request too: 11 of them, 50 ms apart.
    assert len(site.hits) == 11
    assert none_too_early([h.begin for h in site.hits], begin, 0.05)


def test_no_more_connections_to_a_host_than_allowed(site, fetcher):
    site.meeting = threading.Barrier(3)
    urls = [site.url(f"/meet/{n}") for n in range(12)]
    assert all(f.data for f in fetcher(per_host_connections=3).fetch(urls))
    assert most_at_once(site.asked()) == 3


def test_no_more_connections_in_all_than_allowed(site, fetcher):
    names = [f"h{n}.test" for n in range(12)]
    several = fetcher(connections=4, names=lambda host: ["127.0.0.1"])
    site.meeting = threading.Barrier(4)
    assert all(f.data for f in several.fetch([site.url("/meet", host=h) for h in names]))
    assert len(site.asked()) == 12
    assert most_at_once(site.hits) == 4


def test_many_hosts_are_asked_at_one_time(site, fetcher):
    names = [f"h{n}.test" for n in range(20)]
    several = fetcher(per_host_rate=2, names=lambda host: ["127.0.0.1"])
    site.meeting = threading.Barrier(20)  # one after another they would not meet
    assert all(f.data for f in several.fetch([site.url("/meet", host=h) for h in names]))


def test_the_crawl_delay_is_kept_within_its_cap(site, fetcher):
    site.robots = (200, b"User-agent: *\nCrawl-delay: 0.2\n")
    begin = time.time()
    list(fetcher().fetch([site.url(f"/ok/{n}") for n in range(3)]))
    assert none_too_early([h.begin for h in site.asked()], begin, 0.2)
    site.hits.clear()
    site.robots = (200, b"User-agent: *\nCrawl-delay: 200\n")
    begin = time.time()
    list(fetcher(crawl_delay_s=0.05, cache="c2").fetch([site.url(f"/ok/{n}") for n in range(3)]))
    assert none_too_early([h.begin for h in site.asked()], begin, 0.05)
    assert time.time() - begin < 200


def test_a_host_that_says_when_is_not_asked_before_by_anybody(site, fetcher):
    one = fetcher(per_host_connections=1)
    found = list(one.fetch([site.url("/first?429:1"), *(site.url(f"/ok/{n}") for n in range(3))]))
    assert all(f.data for f in found)
    told, _again = site.asked("/first?429:1")  # it need not be the first that is asked
    later = [h for h in site.asked() if h.begin > told.begin]
    assert min(h.begin for h in later) - told.end > 0.99


def test_time_in_the_queue_of_a_host_is_not_counted_against_the_deadline(site, fetcher):
    slow = fetcher(per_host_rate=10, timeout_s=2)
    assert all(f.data for f in slow.fetch([site.url(f"/ok/{n}") for n in range(30)]))


def test_processes_share_the_rate_of_a_host(tmp_path):
    context = multiprocessing.get_context("fork")
    begin = time.time() + 0.1
    queue = context.Queue()
    runs = [context.Process(target=_take, args=(tmp_path, begin, queue)) for _ in range(3)]
    for run in runs:
        run.start()
    taken = sorted(queue.get(timeout=300) for _ in range(12))
    for run in runs:
        run.join()
    assert none_too_early(taken, begin, 0.05)


def _take(root, begin, queue):
    pace = Pace(root)
    time.sleep(max(0, begin - time.time()))
    for _ in range(4):
        while wait := pace.take("a.test", 0.05):
            time.sleep(wait)
        queue.put(time.time())


def test_a_damaged_time_or_a_clock_set_back_stops_nobody(tmp_path):
    pace = Pace(tmp_path)
    assert pace.take("a.test", 600) == 0
    assert 0 < pace.take("a.test", 600) <= 600
    (file,) = (p for p in tmp_path.rglob("*") if p.is_file())
    for text in (b"rubbish", b"nan", b"-inf", b"inf", b"99999999999.0", b"\xff" * 32):
        file.write_bytes(text)
        assert pace.take("a.test", 600) == 0, text
        assert 0 < pace.take("a.test", 600) <= 600


def test_two_processes_cannot_take_one_turn(tmp_path):
    pace = Pace(tmp_path)
    pace.take("a.test", 0)
    (file,) = (p for p in tmp_path.rglob("*") if p.is_file())
    with file.open() as other:  # a lock of another open file, as another process has it
        fcntl.flock(other, fcntl.LOCK_EX)
        assert 0 < pace.take("a.test", 0) < 0.1
    assert pace.take("a.test", 0) == 0
