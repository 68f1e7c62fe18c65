"""robots.txt by RFC 9309, and the headers that say no."""

import time

import pytest

from data_pipeline.build.fetch.optout import ROBOTS_BYTES, Rules, opted_out


def allows(robots, path):
    return Rules.parse(robots).allow(f"http://a.test{path}")


@pytest.mark.parametrize(
    ("robots", "path", "allowed"),
    [
        ("", "/x", True),
        ("User-agent: *\nDisallow: /", "/x", False),
        ("User-agent: *\nDisallow:", "/x", True),
        ("User-agent: *\nDisallow: /a", "/b", True),
        # the longest match wins, whatever comes first; a tie allows (RFC 9309, 2.2.2)
        ("User-agent: *\nDisallow: /\nAllow: /a", "/a/x", True),
        ("User-agent: *\nAllow: /a\nDisallow: /a/b", "/a/b/x", False),
        ("User-agent: *\nDisallow: /a\nAllow: /a", "/a", True),
        ("User-agent: *\nDisallow: /*.gif$", "/x/y.gif", False),
        ("User-agent: *\nDisallow: /*.gif$", "/x/y.gif?z", True),
        ("User-agent: *\nDisallow: /a%3Cd", "/a%3cd", False),
        ("User-agent: *\nDisallow: /ü", "/%C3%BC", False),
        # our own group, whatever its case and version, counts instead of *
        ("User-agent: *\nDisallow: /\n\nUser-agent: Fovea\nDisallow: /a", "/b", True),
        ("User-agent: FOVEA\nDisallow: /\n\nUser-agent: *\nAllow: /", "/b", False),
        ("User-agent: fovea/2.0\nDisallow: /\n\nUser-agent: *\nAllow: /", "/b", False),
        ("User-agent: fo\nAllow: /\n\nUser-agent: *\nDisallow: /", "/b", False),
        ("User-agent: foveabot\nDisallow: /\n\nUser-agent: *\nAllow: /", "/b", True),
        ("User-agent: GPTBot\nDisallow: /", "/b", True),
        # groups of one agent are joined, and a group may have several agents
        ("User-agent: fovea\nDisallow: /a\n\nUser-agent: x\nUser-agent: fovea\nDisallow: /b", "/a", False),
        ("User-agent: fovea\nDisallow: /a\n\nUser-agent: x\nUser-agent: fovea\nDisallow: /b", "/b", False),
        ("User-agent: *\r\nDisallow: / # all\r\n", "/x", False),
        ("<html><p>no robots here", "/x", True),
    ],
)
def test_robots_rules_are_those_of_rfc_9309(robots, path, allowed):
    assert allows(robots, path) is allowed


def test_the_crawl_delay_is_ours():
    text = "User-agent: *\nCrawl-delay: 9\n\nUser-agent: fovea\nCrawl-delay: 2.5\nDisallow:"
    assert Rules.parse(text).crawl_delay == 2.5
    assert Rules.parse("User-agent: *\nCrawl-delay: soon").crawl_delay == 0


@pytest.mark.parametrize(
    "robots",
    [
        b"".join(b"User-agent: a%d\n" % i for i in range(15000)) + b"Allow:/a\n" * 27000,
        b"User-agent: *\n" + b"Disallow: /" + b"*a" * 200_000,
        b"User-agent: *\n" + b"Disallow: /*a*a*a*b\n" * 20000,
        bytes(range(256)) * 2000,
    ],
    ids=["agents times rules", "one long pattern", "many patterns", "all bytes"],
)
def test_a_hostile_robots_txt_costs_little(robots):
    assert len(robots) < ROBOTS_BYTES * 1.1
    begin = time.process_time()
    Rules.parse(robots.decode("utf-8", "replace")).allow("http://a.test/" + "a" * 2000)
    assert time.process_time() - begin < 30  # each agent against each rule: minutes


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("noai", "noai"),
        ("NoImageAI", "noimageai"),
        ("noindex, nofollow", "noindex"),
        ("nofollow, noimageindex", "noimageindex"),
        ("noml", "noml"),
        ("none", "none"),
        ("all", None),
        ("nofollow", None),
        ("max-image-preview: none", None),
        ("fovea: noai", "noai"),
        ("Fovea: nofollow, noai", "noai"),
        ("*: noai", "noai"),
        ("googlebot: noindex", None),
        ("googlebot: nofollow, noindex", None),
        ("googlebot: nofollow, fovea: noindex", "noindex"),
        ("unavailable_after: Friday, 25 Jun 2032 15:00:00 PST, noai", "noai"),
        ("max-snippet: 20, noindex", "noindex"),
    ],
)
def test_x_robots_tag_is_a_closed_set_with_agents(value, found):
    assert opted_out([value], []) == (("X-Robots-Tag", found) if found else None)


def test_each_header_of_a_name_counts():
    assert opted_out(["all", "noai"], []) == ("X-Robots-Tag", "noai")
    assert opted_out([], ["0", " 1 "]) == ("TDM-Reservation", "1")
    assert opted_out([], ["0"]) is None
