"""What sites say about being read by machines: robots.txt (RFC 9309) and the headers of a response."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from protego import Protego

from data_pipeline.build.fetch.config import TOKEN

ROBOTS_BYTES = 500 * 1024  # RFC 9309, 2.5: so much is parsed; the rest is not read
ROBOTS_REDIRECTS = 5  # RFC 9309, 2.3.1.2

# Each says that the image must not be copied, indexed or learnt from.
_OPT_OUTS = frozenset({"noai", "noimageai", "noml", "noindex", "noimageindex", "none"})
_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_TOKEN = re.compile(r"[a-z_-]+[a-z0-9_-]*|\*")
_AGENT_LINE = re.compile(r"\s*user[- ]?agent\s*[:\s]\s*([A-Za-z_-]+|\*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Rules:
    """The groups of one robots.txt that speak to Fovea. The longest match wins; a tie allows."""

    parsed: Protego

    @classmethod
    def parse(cls, text: str) -> "Rules":
        return cls(Protego.parse("\n".join(_agent(line) for line in text.splitlines())))

    def allow(self, url: str) -> bool:
        return self.parsed.can_fetch(url, TOKEN)

    @property
    def crawl_delay(self) -> float:
        """Seconds between requests, 0 where nothing is said."""
        return self.parsed.crawl_delay(TOKEN) or 0.0


def _agent(line: str) -> str:
    """The line; one that names an agent, with our name, `*`, or one name for all others.

    `Fovea/2.0` is us and `fo` is not (2.2.1), and thousands of agents before thousands of rules must not
    become millions of rules.
    """
    found = _AGENT_LINE.match(line)
    if found is None:
        return line
    name = (found.group(1) or "").lower()
    return f"User-agent: {name if name in (TOKEN, '*') else 'other'}"


def opted_out(x_robots: Iterable[str], tdm_reservation: Iterable[str]) -> tuple[str, str] | None:
    """(header, what it says) where the values of X-Robots-Tag or TDM-Reservation keep us out, else None."""
    for value in x_robots:
        if directive := _opt_out(value):
            return "X-Robots-Tag", directive
    if any(value.strip() == "1" for value in tdm_reservation):
        return "TDM-Reservation", "1"
    return None


def _opt_out(value: str) -> str | None:
    """The first directive against us. `agent: a, b, other: c` gives a and b to `agent`, c to `other`."""
    agent = "*"
    for part in value.lower().split(","):
        directive = part.strip()
        name, colon, rest = (s.strip() for s in directive.partition(":"))
        if colon and name in _WITH_VALUE:
            continue
        if colon and _TOKEN.fullmatch(name):
            agent, directive = name, rest
        if agent in ("*", TOKEN) and directive in _OPT_OUTS:
            return directive
    return None
