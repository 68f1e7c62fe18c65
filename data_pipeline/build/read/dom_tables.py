"""The closed tables by which a page's nodes are read: what a tag is, and which nodes are no content.

Class and id tokens count only where the whole token is equal (`share` in `class="share bar"`, not in
`shareholders`), and only tokens that name furniture of pages and hardly ever content: what is lost here
no later step brings back.
"""

import re
from functools import lru_cache

from selectolax.lexbor import LexborHTMLParser, LexborNode

# What the walk does at a tag; a tag in no table is INLINE: it goes into the text around it.
INLINE, PLAIN, DROP, BREAK, SOURCE, NOSCRIPT, LINK, CELL, PICTURE, IMAGE = range(10)
BLOCK, HEADING, FORM, PRE, FIGURE, CAPTION = range(10, 16)
FIRST_THAT_ENDS = LINK  # the walk does something at the end of this kind and those after it
FIRST_THAT_PARTS = IMAGE  # this kind and those after it part the text before them from that after them

_TAGS = {
    DROP: "applet audio button canvas datalist dialog embed footer frameset head iframe input label legend"
    " map math meter nav noembed noframes object optgroup option progress script select style svg template"
    " textarea title video -comment",
    BLOCK: "address article aside blockquote body center dd details dir div dl dt fieldset h4 h5 h6 header"
    " hgroup hr html li main menu ol p search section summary table caption tbody tfoot thead tr ul",
    HEADING: "h1 h2 h3",
    BREAK: "br wbr",
    CELL: "td th",
    PRE: "pre listing xmp plaintext",
    LINK: "a",
    IMAGE: "img",
    PICTURE: "picture",
    SOURCE: "source",
    NOSCRIPT: "noscript",
    FIGURE: "figure",
    CAPTION: "figcaption",
    FORM: "form",
    # Inline tags so common, and so rarely hidden, that their attributes are not looked at.
    PLAIN: "b i em strong u small sub sup font code tt big cite",
}
_PROBE = LexborHTMLParser("<body><!-- comment -->")
_COMMENT = next(n for n in _PROBE.body.traverse() if n.tag == "-comment")  # type: ignore[union-attr]  # it has one


class _Kinds(dict[int, int]):
    """By the parser's number of a tag, which it tells in a third of the time of the name."""

    def __missing__(self, tag_id: int) -> int:
        return INLINE


KINDS = _Kinds(
    ((_COMMENT if tag == "-comment" else _PROBE.create_node(tag)).tag_id, kind)
    for kind, tags in _TAGS.items()
    for tag in tags.split()
)

TELLING = ("hidden", "aria-hidden", "style", "role", "id")  # beside `class`
_TELLING = frozenset(TELLING)
_ROLES = frozenset(
    "alert alertdialog banner complementary contentinfo dialog menu menubar navigation search toolbar".split()  # noqa: SIM905
)
_TOKENS = frozenset(
    """
    ad-banner ad-container ad-slot ad-unit ad-wrapper adsbygoogle
    dfp-ad google-ad sponsored-links
    cookie-banner cookie-bar cookie-consent cookie-message cookie-notice cookie-policy-banner cookiebanner
    cookieconsent cookie-law-info-bar cc-banner cc-window gdpr gdpr-banner gdpr-consent onetrust-banner-sdk
    onetrust-consent-sdk CybotCookiebotDialog consent-banner
    addthis addthis_toolbox addtoany_share_save_container a2a_kit post-share share share-bar share-box
    share-buttons share-links share-tools sharebar sharedaddy sharing sharing-buttons sd-sharing
    social social-bar social-buttons social-icons social-links social-media social-share socialshare
    breadcrumb breadcrumbs breadcrumb-trail yoast-breadcrumb
    sidebar side-bar sidebar-left sidebar-right sidebar-primary sidebar-secondary left-sidebar right-sidebar
    primary-sidebar secondary-sidebar site-sidebar widget widget-area widgets
    jp-relatedposts related related-articles related-content related-links related-posts related-stories
    relatedposts recommended-posts read-next more-stories also-like you-may-also-like yarpp yarpp-related
    nav navbar navbar-nav navigation nav-menu nav-links main-nav main-navigation main-menu mega-menu menu
    mobile-menu post-navigation posts-navigation primary-menu site-nav site-navigation sub-menu submenu
    top-bar topbar toolbar
    pager pagination page-numbers paging wp-pagenavi
    footer page-footer site-footer footer-widgets site-info masthead site-branding site-header
    modal modal-dialog overlay popup popup-overlay lightbox newsletter newsletter-form newsletter-signup
    signup-form subscribe subscribe-form subscription-form paywall
    skip-link skip-to-content screen-reader-text sr-only visually-hidden visuallyhidden
    mw-editsection mw-jump-link navbox catlinks printfooter noprint mw-navigation
    """.split()  # noqa: SIM905
)
_HIDDEN_STYLE = re.compile(r"(?:^|[\s;])(?:display\s*:\s*none|visibility\s*:\s*hidden)\b", re.IGNORECASE)
# The frame of the content keeps its content, whatever it is called.
_FRAME = frozenset(("main", "article"))


def is_furniture(node: LexborNode, attributes: dict[str, str | None]) -> bool:
    """Whether a node is hidden, or navigation, banner, share bar and the like."""
    classes = attributes.get("class")
    if classes is not None and has_token(classes) and node.tag not in _FRAME:
        return True
    if (classes is not None and len(attributes) == 1) or _TELLING.isdisjoint(attributes):
        return False
    if "hidden" in attributes or attributes.get("aria-hidden") == "true":
        return True
    if (style := attributes.get("style")) and _HIDDEN_STYLE.search(style):
        return True
    if node.tag in _FRAME:
        return False
    if (role := attributes.get("role")) and role.strip().lower() in _ROLES:
        return True
    return attributes.get("id") in _TOKENS


@lru_cache(4096)
def has_token(classes: str) -> bool:
    return not _TOKENS.isdisjoint(classes.split())
