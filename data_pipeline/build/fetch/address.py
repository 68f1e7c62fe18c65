"""Which URLs and which network addresses may be asked at all.

A URL is judged by what stands in it, an address after the name was resolved and once more at the socket.
"""

import ipaddress
import re
from collections.abc import Collection, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from yarl import URL

from data_pipeline.build.fetch.outcome import Failure

Network = IPv4Network | IPv6Network

_MAX_CHARS = 8192
_HOST = re.compile(r"(?!-)[a-z0-9_.-]{1,253}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
# Beyond what `ipaddress` calls private (IANA's special-purpose registries): old relays, protocol
# assignments, and the one public address that answers a cloud's own machines.
_REFUSED_4 = [ipaddress.IPv4Network(n) for n in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")]
# Outside 2000::/3 nothing is public: mapped IPv4, NAT64, local and multicast addresses lie there. Within
# it, Teredo and 6to4 carry an IPv4 address of any kind, and 3fff::/20 is for documentation (RFC 9637).
_PUBLIC_6 = IPv6Network("2000::/3")
_REFUSED_6 = [IPv6Network(n) for n in ("2001::/32", "2002::/16", "3fff::/20")]


def parse(text: str, ports: Collection[int]) -> URL:
    """The URL, ready to be asked. Raises Failure where it must not be, whatever its host resolves to."""
    text = text.strip(" ")
    if len(text) > _MAX_CHARS:
        raise _refused(text, f"{len(text)} characters, {_MAX_CHARS} are allowed")
    if _CONTROL.search(text):
        raise _refused(text, "holds control characters")
    try:
        url = URL(text).with_fragment(None)
        host, port = url.raw_host or "", url.port
    except (ValueError, TypeError) as e:  # UnicodeError, of names that are none, is a ValueError
        raise _refused(text, str(e)) from None
    if url.scheme not in ("http", "https"):
        raise _refused(text, f"scheme {url.scheme!r}, allowed are http and https")
    if url.user is not None or url.password is not None:
        raise _refused(text, "holds credentials")
    if port not in ports:
        raise _refused(text, f"port {port}, allow_ports are {', '.join(map(str, ports))}")
    if ":" not in host:
        _check_name(text, host)
    return url


def _check_name(text: str, host: str) -> None:
    if not _HOST.fullmatch(host):
        raise _refused(text, "names no host")
    # 2130706433, 0x7f.1 and 0177.0.0.1 are 127.0.0.1 to many a resolver, and names to other judges
    # (the URL standard calls it "ends in a number").
    if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        try:
            IPv4Address(host)
        except ValueError:
            raise Failure("fetch: address refused", f"{host!r} is no plain IPv4 address") from None


def _refused(text: str, why: str) -> Failure:
    return Failure("fetch: url refused", f"{text[:120]!r}: {why}")


def judge(host: str, address: str, allow: Sequence[Network] = ()) -> None:
    """Raises Failure unless `address`, to which `host` resolved, is public or lies in `allow`."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        raise Failure("fetch: address refused", f"{host}: {address!r} is no address") from None
    if not (any(ip in network for network in allow) or _is_public(ip)):
        raise Failure("fetch: address refused", f"{host} resolves to {ip}, which is not public")


def _is_public(ip: IPv4Address | IPv6Address) -> bool:
    if not ip.is_global or ip.is_multicast or ip.is_reserved:
        return False
    if isinstance(ip, IPv4Address):
        return not any(ip in n for n in _REFUSED_4)
    return ip.scope_id is None and ip in _PUBLIC_6 and not any(ip in n for n in _REFUSED_6)
