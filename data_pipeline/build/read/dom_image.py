"""Where an `<img>` points: plain, by `srcset`, by the attributes of lazy loading, or as a data URI."""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from urllib.parse import unquote_to_bytes, urljoin

# An image wider than this is scaled down before it is trained on: a larger candidate is not worth fetching.
MAX_WIDTH = 2048
MAX_DENSITY = 2.0
MAX_CANDIDATES = 12
FORMATS = {
    "image/jpeg": "image/jpeg",
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/png": "image/png",
    "image/x-png": "image/png",
    "image/webp": "image/webp",
    "image/gif": "image/gif",
}
_LAZY = frozenset(
    (
        *("data-src", "data-original", "data-lazy-src", "data-lazy", "data-actualsrc", "data-orig-src"),
        *("data-hi-res-src", "data-full-src", "data-raw-src", "data-echo", "data-img-src", "data-image-src"),
        *(
            "data-delayed-url",
            "data-defer-src",
            "data-cfsrc",
            "data-fallback-src",
            "data-url",
            "nitro-lazy-src",
        ),
    )
)
_SRCSETS = frozenset(("data-srcset", "data-lazy-srcset", "data-original-set", "srcset"))
_NOTHING = ("#", "about:", "data:image/gif", "data:image/svg+xml")
_STAND_INS = frozenset(
    f"{name}.{suffix}"
    for name in "blank spacer pixel placeholder transparent lazy lazyload loading grey gray 1x1".split()  # noqa: SIM905
    for suffix in ("gif", "png", "svg", "jpg", "jpeg")
)
# Pages carry these as ornaments; that they are not read is noted, and no reason to stop.
UNREAD_SUFFIXES = (".svg", ".svgz", ".ico", ".bmp", ".tif", ".tiff", ".avif", ".heic")
_SPECIAL = _LAZY | _SRCSETS
# An address that ends in a comma has no size; commas inside parentheses part nothing.
_CANDIDATE = re.compile(r"[\s,]*+([^\s,]\S*+)((?<!,)(?:\s[^,(]*+(?:\([^)]*+\))?+[^,]*+)?+|(?<=,))")
_SIZE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,4})?)([wx])\b")
_DATA = re.compile(r"data:([^,;]{0,80})((?:;[^,;]{0,80}){0,8}),", re.IGNORECASE)
_ORIGIN = re.compile(r"https?://[^/?#]+")
_MAGIC = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


def candidates(attributes: Mapping[str, str | None], sources: Iterable[str] = ()) -> tuple[str, ...]:
    """References of one image, the best first; the first that can be had is the image.

    `sources` are the `srcset` values of the `<source>` elements before it in its `<picture>`.
    """
    src = (attributes.get("src") or "").strip()
    if not sources and _SPECIAL.isdisjoint(attributes):
        return (src,)
    sets: list[str] = [*sources]
    lazy: list[str] = []
    for name, value in attributes.items():
        if value and name in _SPECIAL:
            (sets if name in _SRCSETS else lazy).append(value.strip())
    if not sets and not lazy:
        return (src,)
    best: list[str] = []
    rest: list[str] = []
    for value in sets:
        found = from_srcset(value)
        best += found[:1]
        rest += found[1:]
    real = [r for r in dict.fromkeys((*best, *lazy, src, *rest)) if not is_blank(r)]
    return tuple(real[:MAX_CANDIDATES]) or (src,)


def from_srcset(value: str) -> list[str]:
    """The candidates of a `srcset`: the largest that is not larger than needed first, then downwards."""
    found = _CANDIDATE.findall(value[:20_000])
    ranked = sorted([(_rank(size), n, url.rstrip(",")) for n, (url, size) in enumerate(found)])
    return [url for _, _, url in ranked]


@lru_cache(256)
def _rank(size: str) -> tuple[bool, float]:
    """The place of a candidate of this size (` 640w`, ` 2x`, or none) among the others."""
    found = _SIZE.search(size)
    number, unit = (float(found[1]), found[2]) if found else (1.0, "x")
    # Beyond the limit the smallest comes first, and all of them after those within it.
    beyond = number > (MAX_WIDTH if unit == "w" else MAX_DENSITY)
    return beyond, number if beyond else -number


def is_blank(reference: str) -> bool:
    """Whether the reference is empty, or stands in for an image that a script loads later."""
    start = reference[:2000].lower().lstrip()
    if not start or start.startswith(_NOTHING):
        return True
    # `/img/pixel.gif?x=1`, `/my-blank.png`: the word before the end, or before a question mark
    words = start.replace("_", "/").replace("-", "/")
    if "?" not in words:
        return words.rpartition("/")[2] in _STAND_INS
    return any(part.rpartition("/")[2] in _STAND_INS for part in words.split("?"))


def absolute(reference: str, base: str) -> str:
    """The reference joined to the page's address; as it stands where that is not possible."""
    if reference[:1] == "/" != reference[1:2] and "/." not in reference and (origin := _origin(base)):
        return origin + reference  # `urljoin` of the usual case, at a tenth of its time
    if not base or reference.startswith(("http://", "https://", "data:")):
        return reference
    try:
        return urljoin(base, reference)
    except ValueError:  # no address at all, as `//[x`
        return reference


@lru_cache(64)
def _origin(base: str) -> str:
    found = _ORIGIN.match(base)
    return found.group() if found else ""


def from_data_uri(uri: str, max_bytes: int) -> bytes | str:
    """The image inside a data URI, or why there is none. At most `max_bytes` are decoded."""
    head = _DATA.match(uri)
    if head is None:
        return "no data URI: no comma after its head"
    media_type = head.group(1).strip().lower()
    if media_type not in FORMATS:
        return f"media type {media_type[:40]!r} is none of {', '.join(sorted(set(FORMATS.values())))}"
    body = uri[head.end() :]
    is_base64 = head.group(2).lower().rstrip().endswith(";base64")
    if len(body) > (max_bytes * 4 // 3 + 4 if is_base64 else max_bytes * 3):
        return f"{len(body):,} characters, more than {max_bytes:,} bytes"
    data = unquote_to_bytes(body)
    if is_base64:
        packed = b"".join(data.split()).rstrip(b"=")
        try:
            data = base64.b64decode(packed + b"=" * (-len(packed) % 4), altchars=None)
        except binascii.Error as e:
            return f"broken base64: {e}"
    if sniff(data) is None:
        return f"{len(data):,} bytes that do not begin as JPEG, PNG, WebP or GIF"
    return data


def sniff(data: bytes) -> str | None:
    """The media type by the first bytes; None where it is none of the formats that are read."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((name for magic, name in _MAGIC if data.startswith(magic)), None)
