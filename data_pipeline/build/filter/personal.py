"""Personal data in a text, replaced by fixed placeholders. Precision first: other numbers stay.

Network addresses are replaced where they are public. Phone numbers are taken where their form says so:
with a plus and a country code, in the North American form, or after a word such as `tel`.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Sequence

from data_pipeline.build.filter.config import PersonalData

PLACEHOLDERS: dict[PersonalData, str] = {"email": "[EMAIL]", "ip": "[IP]", "phone": "[PHONE]"}
_FILE_ENDINGS = ("png", "jpg", "jpeg", "gif", "webp", "svg", "avif", "bmp")  # `icon@2x.png` is no address
_EMAIL = re.compile(
    r"(?<![\w.+%-])[A-Za-z0-9][\w.+%-]{0,63}@(?:[A-Za-z0-9][A-Za-z0-9-]{0,62}\.){1,8}([A-Za-z]{2,24})(?![\w-])"
)
_IP = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}(?!\.?\w)|[23][0-9a-fA-F]{3}:[0-9a-fA-F:]{3,34}(?![\w:]))"
)
_NUMBERED = re.compile(r"(?:\bv|\bver|version|release|section|chapter|§)[ .:]*$", re.IGNORECASE)
# One separator at most before a digit: no text can be divided in two ways, so matching stays linear.
_PHONE = re.compile(
    r"(?<![\w+.,/-])(?:"
    r"\+[1-9](?:[ .\-]?\(?\d\)?){7,16}"
    r"|(?:1[ .\-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.\-])[2-9]\d\d[.\-]\d{4}"
    r")(?!\w|[.,/\-]\d)"
)
_CALLED = re.compile(
    r"(?i)\b(?:tel|telephone|phone|fax|mobile|call|telefon|tél|téléphone|teléfono)\b"
    r"\.?:? ?(?:(?:us|at|on|no\.?) ){0,2}(\(?\d\)?(?:[ .\-/]?\(?\d\)?){6,16})(?!\w|[.,/\-]\d)"
)
_DIGITS = re.compile(r"\d")


def replace_personal_data(text: str, kinds: Sequence[PersonalData]) -> tuple[str, Counter[PersonalData]]:
    """The text with placeholders, and how many of each kind were put in; without any it comes back as is."""
    counts: Counter[PersonalData] = Counter()
    if "email" in kinds and "@" in text:
        text = _sub(_EMAIL, text, "email", counts, _is_email)
    if not _DIGITS.search(text):
        return text, counts
    if "ip" in kinds:
        text = _sub(_IP, text, "ip", counts, _is_public_ip)
    if "phone" in kinds:
        text = _sub(_PHONE, text, "phone", counts, _is_phone)
        text = _sub(_CALLED, text, "phone", counts, lambda m: len(_DIGITS.findall(m[1])) <= 15, group=1)
    return text, counts


def _sub(
    pattern: re.Pattern[str],
    text: str,
    kind: PersonalData,
    counts: Counter[PersonalData],
    valid: Callable[[re.Match[str]], bool],
    group: int = 0,
) -> str:
    pieces, end = [], 0
    for match in pattern.finditer(text):
        if valid(match):
            pieces += [text[end : match.start(group)], PLACEHOLDERS[kind]]
            end = match.end(group)
            counts[kind] += 1
    return "".join((*pieces, text[end:])) if pieces else text


def _is_email(match: re.Match[str]) -> bool:
    return match[1].lower() not in _FILE_ENDINGS


def _is_public_ip(match: re.Match[str]) -> bool:
    if _NUMBERED.search(match.string, max(0, match.start() - 12), match.start()):
        return False
    try:
        return ipaddress.ip_address(match[0]).is_global
    except ValueError:
        return False


def _is_phone(match: re.Match[str]) -> bool:
    """8 to 15 digits (E.164), grouped as people write them; dots as the sole separator only: not `+1.4 2`."""
    groups = [g for g in re.split(r"[ .\-()]+", match[0]) if g]
    dots = match[0].count(".")
    return (
        8 <= sum(c.isdigit() for c in match[0]) <= 15
        and all(len(g) > 1 for g in groups[2:-1])
        and (dots == 0 or (dots == len(groups) - 1 and dots > 1))
    )
