"""What comes of a fetch: bytes, or one of a closed set of reasons, with the decision that was taken."""

import dataclasses
from dataclasses import dataclass, field

REASONS = frozenset(
    {
        "fetch: url refused",  # scheme, credentials, port, or no URL at all
        "fetch: address refused",  # of this machine, of a private network, or of no use
        "fetch: robots.txt",
        "fetch: robots unavailable",
        "fetch: X-Robots-Tag",
        "fetch: TDM-Reservation",
        "fetch: name not found",
        "fetch: connection",
        "fetch: TLS",
        "fetch: timeout",
        "fetch: deadline",
        "fetch: redirects",
        "fetch: 401",
        "fetch: 403",
        "fetch: 404",
        "fetch: 410",
        "fetch: 429",
        "fetch: 451",
        "fetch: 4xx",
        "fetch: 5xx",
        "fetch: bad response",
        "fetch: content encoding",
        "fetch: too large",
        "fetch: cut short",
        "fetch: empty",
        "fetch: document full",  # said by the step, not of a URL
    }
)
OPT_OUTS = ("fetch: robots.txt", "fetch: X-Robots-Tag", "fetch: TDM-Reservation")


class Failure(Exception):
    """Why there are no bytes. `transient`: worth another attempt, after `wait` seconds if the host says so.

    `decision` is what was decided about asking at all, and by what.
    """

    def __init__(self, reason: str, detail: str, *, transient: bool = False, wait: float | None = None):
        if reason not in REASONS:
            raise ValueError(f"{reason!r} is none of the reasons of a fetch")
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.transient = transient
        self.wait = wait
        self.decision = f"refused: {reason.removeprefix('fetch: ')}" if reason in OPT_OUTS else ""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is remembered of a URL. `until` (seconds since 1970): when it may be tried again; None: never."""

    url: str
    reason: str | None = None  # None: there are bytes
    detail: str = ""
    decision: str = ""  # allowed, refused or not asked, and by what
    status: int | None = None
    final_url: str | None = None
    media_id: str | None = None
    nbytes: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    time: float = 0.0
    until: float | None = None

    def __post_init__(self) -> None:
        if (self.reason is None) == (self.media_id is None) or self.reason not in (None, *REASONS):
            raise ValueError(f"{self.url}: neither bytes nor a reason why there are none")


@dataclass(frozen=True, kw_only=True)
class Robots:
    """A host's robots.txt: its text; neither text nor reason: there is none; or why it could not be had."""

    origin: str
    until: float  # seconds since 1970: then it is asked again
    body: str | None = None
    reason: str | None = None
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A URL's bytes, or the reason why there are none."""

    url: str
    data: bytes | None = field(default=None, repr=False)
    reason: str | None = None
    detail: str = ""
    decision: str = ""
    final_url: str | None = None
    media_id: str | None = None

    @classmethod
    def of(cls, record: Record, data: bytes | None) -> "Fetched":
        names = [f.name for f in dataclasses.fields(cls) if f.name != "data"]
        return cls(data=data, **{n: getattr(record, n) for n in names})
