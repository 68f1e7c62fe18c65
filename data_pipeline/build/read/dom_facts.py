"""What a page says of itself: title, language, address, and whether it keeps itself out of datasets."""

from dataclasses import dataclass

from selectolax.lexbor import LexborHTMLParser

from data_pipeline.build.read.dom_image import absolute

_OPT_OUTS = frozenset(("noindex", "none", "noai", "noimageai", "noimageindex", "noml"))
_META_ROBOTS = frozenset(("robots", "googlebot", "ccbot", "gptbot", "google-extended"))


@dataclass(frozen=True)
class Facts:
    """What a page says of itself. `robots`: the directives of its meta tags that keep it out of datasets."""

    title: str | None = None
    lang: str | None = None
    canonical: str | None = None
    base: str = ""
    robots: frozenset[str] = frozenset()
    tdm_reserved: bool = False


def facts_of(tree: LexborHTMLParser, url: str) -> Facts:
    root, head = tree.root, tree.head
    lang = root.attributes.get("lang") or root.attributes.get("xml:lang") if root is not None else None
    if head is None:
        return Facts(lang=squeezed(lang), base=url)
    title = canonical = None
    base = url
    robots: set[str] = set()
    tdm = False
    node = head.first_child
    while node is not None:
        match node.tag:
            case "title":
                title = title or squeezed(node.text())
            case "base":
                base = _base(url, node.attributes.get("href"), base)
            case "link":
                attributes = node.attributes
                if canonical is None and (attributes.get("rel") or "").lower() == "canonical":
                    canonical = absolute((attributes.get("href") or "").strip(), base) or None
            case "meta":
                attributes = node.attributes
                name, content = (attributes.get("name") or "").lower(), attributes.get("content") or ""
                if name in _META_ROBOTS:
                    robots.update(directives(content))
                elif name == "tdm-reservation":
                    tdm = tdm or content.strip() == "1"
        node = node.next
    return Facts(title, squeezed(lang), canonical, base, frozenset(robots), tdm)


def directives(content: str) -> set[str]:
    """The directives of a robots meta tag or `X-Robots-Tag` that keep a page or its images out of datasets.

    One that is meant for a single agent (`somebot: noai`) is honoured as if it were meant for all.
    """
    return {d.rsplit(":", 1)[-1].strip().lower() for d in content[:2000].split(",")} & _OPT_OUTS


def _base(url: str, href: str | None, base: str) -> str:
    """The first `<base href>` counts. In a local tree one that names a host says nothing of the files."""
    if not href or base != url:
        return base
    return absolute(href.strip(), url) if url else href.strip() if "/" in href and ":" not in href else url


def squeezed(text: str | None) -> str | None:
    return (" ".join(text.split()) or None) if text else None
