"""Which URLs and addresses are asked: judged against a table written by hand."""

import ipaddress

import pytest

from data_pipeline.build.fetch.address import judge, parse
from data_pipeline.build.fetch.outcome import Failure

PUBLIC = ["8.8.8.8", "1.1.1.1", "151.101.1.69", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e"]
REFUSED = [
    "127.0.0.1",
    "127.8.9.10",
    "0.0.0.0",
    "0.1.2.3",
    "10.1.2.3",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",  # the metadata of cloud machines
    "168.63.129.16",
    "100.64.0.1",
    "100.100.100.200",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.5",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::a00:1",
    "2002:7f00:1::",
    "2001::1",
    "2001:db8::1",
    "3fff::1",
    "5f00::1",
    "100::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "no address",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_asked(address):
    judge("a.test", address)


@pytest.mark.parametrize("address", REFUSED)
def test_addresses_that_are_not_public_are_refused(address):
    with pytest.raises(Failure) as e:
        judge("a.test", address)
    assert e.value.reason == "fetch: address refused"


def test_only_the_networks_named_are_let_through():
    allow = [ipaddress.ip_network("127.0.0.1/32"), ipaddress.ip_network("fd00::/8")]
    judge("a.test", "127.0.0.1", allow)
    judge("a.test", "fd00::1", allow)
    for refused in ("127.0.0.2", "::ffff:127.0.0.1", "fc00::1"):
        with pytest.raises(Failure):
            judge("a.test", refused, allow)


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://a.test/x.jpg", "http://a.test/x.jpg"),
        ("  https://A.Test/x y.jpg#top ", "https://a.test/x%20y.jpg"),
        ("http://bücher.example/ü.png", "http://xn--bcher-kva.example/%C3%BC.png"),
        ("http://127。0。0。1/", "http://127.0.0.1/"),  # the resolver's guard sees what it is
        ("http://a.test:443/", "http://a.test:443/"),
        ("http://8.8.8.8/x", "http://8.8.8.8/x"),
        ("http://[2606:4700::1]/x", "http://[2606:4700::1]/x"),
        ("http://a_b.test/", "http://a_b.test/"),
    ],
)
def test_a_url_is_asked_in_its_plain_form(url, asked):
    assert str(parse(url, (80, 443))) == asked


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://a.test/x", "url refused"),
        ("file:///etc/passwd", "url refused"),
        ("data:image/png;base64,AAAA", "url refused"),
        ("gopher://a.test/", "url refused"),
        ("//a.test/x", "url refused"),
        ("x.jpg", "url refused"),
        ("", "url refused"),
        ("http://", "url refused"),
        ("http:///x", "url refused"),
        ("http:\\\\a.test\\x", "url refused"),
        ("http://a.test\\@b.test/", "url refused"),
        ("http://user:pw@a.test/", "url refused"),
        ("http://user@a.test/", "url refused"),
        ("http://:pw@a.test/", "url refused"),
        ("http://a.test/\r\nHost: b.test", "url refused"),
        ("http://a.test\n/", "url refused"),
        ("http://a.test/\x00", "url refused"),
        ("http://a.test/\x7f", "url refused"),
        ("http://a.test:22/", "url refused"),
        ("http://a.test:0/", "url refused"),
        ("http://a.test:99999/", "url refused"),
        ("http://a.test:80:80/", "url refused"),
        ("http://a b.test/", "url refused"),
        ("http://a%2etest/", "url refused"),
        ("http://-a.test/", "url refused"),
        ("http://" + "a" * 300 + ".test/", "url refused"),
        ("http://a.test/" + "x" * 9000, "url refused"),
        ("http://[::1/", "url refused"),
        ("http://2130706433/", "address refused"),
        ("http://0x7f.1/", "address refused"),
        ("http://0x7f000001/", "address refused"),
        ("http://0177.0.0.1/", "address refused"),
        ("http://127.1/", "address refused"),
        ("http://127.0.0.1./", "address refused"),
        ("http://a.test.1/", "address refused"),
    ],
)
def test_a_url_that_must_not_be_asked_is_refused_before_any_look_up(url, reason):
    with pytest.raises(Failure) as e:
        parse(url, (80, 443))
    assert e.value.reason == f"fetch: {reason}"


def test_a_refusal_shows_no_control_characters_and_no_endless_url():
    with pytest.raises(Failure) as e:
        parse("http://a.test/\x1b[2J" + "x" * 5000, (80,))
    assert "\x1b" not in e.value.detail
    assert len(e.value.detail) < 300
