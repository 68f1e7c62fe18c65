"""Pages made to hurt, made harmless before they are parsed.

An HTML parser compares each attribute of a tag with those before it, and looks up its open elements at
each tag, and copies unclosed formatting into each new block: a page of a few hundred KB can cost minutes
and gigabytes. Here too deep tags and surplus attributes are left out; no text and no image is.
"""

import re

import numpy as np

MAX_DEPTH = 512  # Chrome and Firefox cut at the same depth
MAX_ATTRIBUTES = 256
MAX_OPEN_FORMATS = 32
# Below both the worst page costs a second and 200 MB.
_SMALL_CHARS, _SMALL_TAGS = 65_536, 4_000

_ATTRIBUTE = re.compile(
    r"""[\s/]*+[^\s/>][^\s/>=]*+(?:\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s>"'][^\s>]*+)?+)?+"""
)
_TAG = re.compile(
    r"<!--.*?(?:-->|\Z)"
    r"|<(script|style|textarea|title|xmp|iframe|noembed|noframes|template)(?=[\s/>]).*?(?:</\1(?=[\s/>])|\Z)"
    rf"|<(/?)([a-z][^\s/>]*+)((?:{_ATTRIBUTE.pattern})*+)[\s/]*+(?:>|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_FORMATS = frozenset("a b big code em font i nobr s small strike strong tt u".split())  # noqa: SIM905
# These have no content, or a like one closes them: they do not nest by themselves.
_FLAT = frozenset(
    """
    area base br col embed hr img input link meta param source track wbr
    p li dd dt tr td th tbody thead tfoot option optgroup rp rt
    """.split()  # noqa: SIM905
)


def tame(page: str) -> bytes:
    """The page in UTF-8, tags deeper than `MAX_DEPTH` and attributes beyond `MAX_ATTRIBUTES` left out."""
    data = page.encode(errors="ignore")
    if len(page) <= _SMALL_CHARS and _tags(data) <= _SMALL_TAGS:
        return data
    kept: list[str] = []
    done = depth = formats = 0
    for match in _TAG.finditer(page):
        name = (match.group(3) or "").lower()
        text: str | None = None
        if name and name not in _FLAT:
            closing = match.group(2)
            if name in _FORMATS:
                formats = max(formats - 1, 0) if closing else formats + 1
                too_deep = formats > MAX_OPEN_FORMATS - (not closing)
            else:
                depth = max(depth - 1, 0) if closing else depth + 1
                too_deep = depth > MAX_DEPTH - bool(closing)
                formats = formats if depth else 0
            text = "" if too_deep else None
        if text is None and len(match.group(4) or "") > 2 * MAX_ATTRIBUTES:
            text = _trimmed(match)
        if text is not None:
            kept += (page[done : match.start()], text)
            done = match.end()
    kept.append(page[done:])
    return "".join(kept).encode(errors="ignore")


def _tags(page: bytes) -> int:
    """`page.count(b"<")`, at half of its time."""
    return int(np.count_nonzero(np.frombuffer(page, np.uint8) == ord("<")))


def _trimmed(match: re.Match[str]) -> str | None:
    end = 0
    for n, attribute in enumerate(_ATTRIBUTE.finditer(match.group(4))):
        if n == MAX_ATTRIBUTES:
            return f"<{match.group(2)}{match.group(3)}{match.group(4)[:end]}>"
        end = attribute.end()
    return None
