"""Every way in which a real server misbehaves ends in the bytes or in its one reason, within the deadline."""

import ssl
import time
import tracemalloc
from types import SimpleNamespace

import pytest

from data_pipeline.build.fetch import cache, visit
from data_pipeline.build.fetch.outcome import REASONS

FOREVER = 500.0  # that of the site
IMPATIENT = {
    "fetch: timeout": {"idle_s": 0.35, "honour_robots": False},
    "fetch: deadline": {"timeout_s": 1.0, "honour_robots": False},
}
"""Settings under which what does not answer is left soon. Nobody could ask for robots.txt so quickly."""


def one(fetcher, url):
    (found,) = fetcher.fetch([url])
    assert found.reason is None or found.reason in REASONS
    assert (found.data is None) == (found.reason is not None)
    return found


def test_bytes_arrive_with_their_id_and_the_decision(site, fetcher):
    found = one(fetcher(), site.url())
    assert (found.data, found.final_url) == (site.picture, site.url())
    assert found.decision == "allowed: no robots.txt"
    (hit,) = site.asked()
    assert hit.headers["User-Agent"] == "fovea/0.1"
    assert hit.headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/redirect?file:///etc/passwd", "fetch: url refused"),
        ("/redirect?ftp://a.test/x", "fetch: url refused"),
        ("/redirect?http://user:pw@a.test/", "fetch: url refused"),
        ("/redirect?http://127.0.0.1:1/", "fetch: url refused"),
        ("/redirect?http://[::1]/", "fetch: address refused"),
        ("/redirect?http://127.0.0.2/", "fetch: address refused"),
        ("/redirect?http://169.254.169.254/latest/", "fetch: address refused"),
        ("/redirect?http://0x7f.1/", "fetch: address refused"),
        ("/loop", "fetch: redirects"),
        ("/status?301", "fetch: bad response"),
        ("/status?204", "fetch: bad response"),
        ("/status?206", "fetch: bad response"),
        ("/hang", "fetch: timeout"),
        ("/stall", "fetch: timeout"),
        ("/drip", "fetch: deadline"),
        ("/infinite", "fetch: too large"),
        ("/headers", "fetch: bad response"),
        ("/garbage", "fetch: bad response"),
        ("/length?100000", "fetch: cut short"),
        ("/bomb", "fetch: too large"),
        ("/gzip?20", "fetch: cut short"),
        ("/encoded?br", "fetch: content encoding"),
        ("/encoded?gzip", "fetch: bad response"),
        ("/status?401", "fetch: 401"),
        ("/status?403", "fetch: 403"),
        ("/status?404", "fetch: 404"),
        ("/status?410", "fetch: 410"),
        ("/status?418", "fetch: 4xx"),
        ("/status?429", "fetch: 429"),
        ("/status?451", "fetch: 451"),
        ("/status?500", "fetch: 5xx"),
        ("/status?503", "fetch: 5xx"),
        ("/header?X-Robots-Tag=noai", "fetch: X-Robots-Tag"),
        ("/header?X-Robots-Tag=all|fovea: noindex", "fetch: X-Robots-Tag"),
        ("/header?TDM-Reservation=1", "fetch: TDM-Reservation"),
        ("/reset", "fetch: cut short"),
        ("/empty", "fetch: empty"),
    ],
)
def test_each_misbehaviour_has_its_reason(site, fetcher, path, reason):
    begin = time.monotonic()
    found = one(fetcher(max_bytes=200_000, **IMPATIENT.get(reason, {})), site.url(path))
    assert found.reason == reason
    assert time.monotonic() - begin < FOREVER / 2


@pytest.mark.parametrize("path", ["/gzip", "/html", "/encoded?identity", "/cookie"])
def test_odd_answers_that_hold_bytes_are_taken(site, fetcher, path):
    found = one(fetcher(), site.url(path))
    assert found.data == (b"<!doctype html><p>Not here." if path == "/html" else site.picture)
    assert all("Cookie" not in h.headers for h in site.hits)


def test_a_length_that_is_too_short_gives_no_more_than_it_says(site, fetcher):
    found = one(fetcher(), site.url("/length?30"))  # by chance of timing: cut, or seen to be broken
    assert found.data == site.picture[:30] or found.reason == "fetch: bad response"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://2130706433/", "fetch: address refused"),
        ("http://0x7f.1/", "fetch: address refused"),
        ("http://0177.0.0.1/", "fetch: address refused"),
        ("http://[::1]/", "fetch: address refused"),
        ("http://[::ffff:127.0.0.1]/", "fetch: address refused"),
        ("http://[64:ff9b::7f00:1]/", "fetch: address refused"),
        ("http://127。0。0。1/", "fetch: address refused"),
        ("http://localhost/", "fetch: address refused"),
        ("http://0.0.0.0/", "fetch: address refused"),
        ("http://10.0.0.1/", "fetch: address refused"),
        ("http://user:pw@127.0.0.1/", "fetch: url refused"),
        ("http://127.0.0.1/\r\nX: y", "fetch: url refused"),
        ("http://xn--/", "fetch: name not found"),
        ("http://a..test/", "fetch: name not found"),
    ],
)
@pytest.mark.parametrize("honour", [True, False])
def test_this_machine_is_out_of_reach_by_whatever_name(site, fetcher, url, reason, honour):
    url = f"{url[:-1]}:{site.port}/" if url.endswith("/") else url
    assert one(fetcher(allow=[], honour_robots=honour, retries=0), url).reason == reason
    assert not site.hits


def test_a_local_port_is_out_of_reach_without_the_explicit_argument(site, fetcher):
    for host in ("127.0.0.1", "localhost"):
        assert one(fetcher(allow=[]), site.url(host=host)).reason == "fetch: address refused"
    assert not site.hits


def test_a_port_that_is_not_named_is_refused(site, other_site, fetcher):
    assert one(fetcher(), other_site.url()).reason == "fetch: url refused"
    assert not other_site.hits


def test_all_addresses_of_a_name_are_judged_not_only_the_first(site, fetcher):
    mixed = fetcher(names=lambda host: ["127.0.0.1", "10.0.0.1"])
    assert one(mixed, site.url(host="a.test")).reason == "fetch: address refused"
    assert not site.hits


def test_a_name_that_changes_its_mind_is_judged_again(site, other_site, fetcher):
    answers = iter([["127.0.0.1"], ["127.0.0.2"]])
    rebinding = fetcher(names=lambda host: next(answers), ports=[other_site.port])
    url = site.url("/redirect?" + other_site.url(host="a.test"), host="a.test")
    assert one(rebinding, url).reason == "fetch: address refused"
    assert not other_site.hits


def test_the_connection_goes_to_the_address_that_was_judged(site, fetcher):
    asked = []

    def names(host):
        asked.append(host)
        return ["127.0.0.1"]

    assert one(fetcher(names=names), site.url(host="no.such.name.test")).data == site.picture
    assert asked == ["no.such.name.test"]  # nobody asked the system a second time
    assert site.asked()[0].host == f"no.such.name.test:{site.port}"


def test_no_proxy_of_the_environment_is_used(site, other_site, fetcher, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{other_site.port}")
    assert one(fetcher(), site.url()).data == site.picture
    assert not other_site.hits


@pytest.mark.parametrize("path", ["/first?500", "/first?503", "/first?429:0", "/first?408"])
def test_what_may_pass_is_tried_again(site, fetcher, path):
    assert one(fetcher(), site.url(path)).data == site.picture
    assert len(site.asked()) == 2


@pytest.mark.parametrize("path", ["/status?403", "/status?404", "/status?410", "/header?TDM-Reservation=1"])
def test_what_is_final_is_asked_once(site, fetcher, path):
    one(fetcher(retries=3), site.url(path))
    assert len(site.asked()) == 1


def test_retries_end(site, fetcher):
    assert one(fetcher(retries=3), site.url("/status?500")).reason == "fetch: 5xx"
    assert len(site.asked()) == 4


def test_a_host_that_asks_for_a_long_wait_is_left_for_now(site, fetcher):
    begin = time.monotonic()
    assert one(fetcher(retry_after_s=60), site.url("/first?429:3600")).reason == "fetch: 429"
    assert len(site.asked()) == 1
    assert time.monotonic() - begin < 1000


def test_jitter_is_the_same_for_the_same_seed(site, fetcher):
    def pauses(**settings):
        visitor = fetcher(backoff_s=1.0, **settings)._visitor
        return [visitor._backoff("http://a.test/x", n) for n in range(4)]

    assert pauses() == pauses() != pauses(seed=1)
    assert all(0.5 * 2**n <= p <= 2**n for n, p in enumerate(pauses()))


def test_an_endless_body_is_left_at_the_cap(site, fetcher):
    assert one(fetcher(max_bytes=100_000), site.url("/infinite")).reason == "fetch: too large"
    # What the sockets of both ends hold beyond the cap, and no more.
    assert site.seen["sent"] < 20_000_000


def test_a_bomb_goes_off_in_small_portions(site, fetcher):
    quick = fetcher(max_bytes=200_000)
    one(quick, site.url())
    tracemalloc.start()
    assert one(quick, site.url("/bomb")).reason == "fetch: too large"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000  # the first chunk alone unpacks to 14 MB


# robots.txt


def test_robots_txt_is_asked_once_and_before_anything_else(site, fetcher):
    site.robots = (200, b"User-agent: fovea\nDisallow: /status\n")
    urls = [site.url(f"/ok/{n}") for n in range(5)] + [site.url("/status?200")]
    found = list(fetcher().fetch(urls))
    assert [f.reason for f in found] == [None] * 5 + ["fetch: robots.txt"]
    assert found[0].decision == "allowed: robots.txt"
    assert found[5].decision == "refused: robots.txt"
    assert [h.path for h in site.hits].count("/robots.txt") == 1
    assert site.hits[0].path == "/robots.txt"
    assert not site.asked("/status?200")


def test_robots_are_honoured_at_every_hop(site, other_site, fetcher):
    other_site.robots = (200, b"User-agent: *\nDisallow: /")
    found = one(fetcher(ports=[other_site.port]), site.url("/redirect?" + other_site.url()))
    assert found.reason == "fetch: robots.txt"
    assert not other_site.asked()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((404, b""), None),
        ((403, b""), None),
        ((500, b""), "fetch: robots unavailable"),
        ((503, b""), "fetch: robots unavailable"),
        ((429, b""), "fetch: robots unavailable"),
        ((200, b"#" * 600_000 + b"\nUser-agent: *\nDisallow: /"), None),
        ((200, b"User-agent: *\nDisallow: /\n" + b"#" * 5_000_000), "fetch: robots.txt"),
        ((200, b"\xef\xbb\xbfUser-agent: *\nDisallow: /"), "fetch: robots.txt"),
        ((200, b"\xff\xfe\nUser-agent: *\nDisallow: /"), "fetch: robots.txt"),
        ((302, b"", {"Location": "/ok"}), None),
        ((302, b"", {"Location": "/robots.txt"}), "fetch: robots unavailable"),
        ((302, b"", {"Location": "http://10.0.0.1/robots.txt"}), "fetch: robots unavailable"),
        ((302, b"", {"Location": "file:///etc/passwd"}), "fetch: robots unavailable"),
    ],
)
def test_an_odd_robots_txt_is_taken_as_rfc_9309_says(site, fetcher, answer, reason):
    site.robots = answer
    found = one(fetcher(), site.url())
    assert found.reason == reason
    if reason == "fetch: robots unavailable":
        assert not site.asked("/ok") or answer[0] == 302


def test_a_robots_txt_of_another_host_may_be_sent_for(site, other_site, fetcher):
    other_site.robots = (200, b"User-agent: *\nDisallow: /ok")
    site.robots = (301, b"", {"Location": other_site.url("/robots.txt")})
    assert one(fetcher(ports=[other_site.port]), site.url()).reason == "fetch: robots.txt"


def test_a_robots_txt_that_never_comes_refuses_in_time(site, fetcher):
    site.answer = lambda h: site.do_hang(h, "")
    begin = time.monotonic()
    assert one(fetcher(idle_s=0.2), site.url()).reason == "fetch: robots unavailable"
    assert time.monotonic() - begin < FOREVER / 2


def test_a_robots_txt_that_could_not_be_asked_is_asked_again_later(site, fetcher, monkeypatch):
    site.robots = (500, b"")
    patient = fetcher(remember_failures_s=1000)
    assert one(patient, site.url("/ok/1")).reason == "fetch: robots unavailable"
    site.robots = (404, b"")
    assert one(patient, site.url("/ok/2")).reason == "fetch: robots unavailable"
    for module in (visit, cache):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: time.time() + 1000))
    assert one(patient, site.url("/ok/3")).data == site.picture


def test_the_user_may_decide_for_pages_of_their_own(site, fetcher):
    site.robots = (200, b"User-agent: *\nDisallow: /")
    found = one(fetcher(honour_robots=False), site.url())
    assert (found.data, found.decision) == (site.picture, "not asked")
    assert not site.asked("/robots.txt")


# TLS


def test_tls_is_verified_against_the_name_that_was_asked(tls_site, fetcher, certificate):
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    ports = {"ports": [tls_site.port], "names": lambda host: ["127.0.0.1"]}
    assert one(fetcher(tls=trusting, **ports), tls_site.url(host="a.test")).data == tls_site.picture
    assert one(fetcher(tls=trusting, **ports), tls_site.url(host="b.test")).reason == "fetch: TLS"
    assert one(fetcher(cache="c2", **ports), tls_site.url(host="a.test")).reason == "fetch: TLS"


def test_http_where_tls_is_expected_and_the_other_way_round(site, tls_site, fetcher):
    quick = fetcher(ports=[tls_site.port], honour_robots=False, retries=0)
    assert one(quick, site.url().replace("http:", "https:")).reason == "fetch: TLS"
    assert one(quick, tls_site.url().replace("https:", "http:")).reason is not None
