"""Penn Treebank tokens as the COCO caption benchmark makes them, without Java.

The benchmark runs the Stanford PTBTokenizer (3.4.1, lower case) and drops punctuation. That program is a list
of rules of which the longest match wins, and of equally long ones the first. So is this. A rule may also ask
for what follows its token: that counts for the length.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

_DROPPED = frozenset({"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"})
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_CURRENCY = {"¢": "cents", "£": "#", "¤": "$", "€": "$", "\u0080": "$", "\u20a0": "$"}
_FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
# The program sees the line after a caption's. Most of COCO's lines begin so, and a score that depended on the
# order of its captions would be none.
_NEXT_LINE = "\nA "

_SPACE = r"[ \t\u00a0\u2000-\u200a\u3000]"
_BREAK = r"[ \t\u00a0\u2000-\u200a\u3000\n]"
# Python's letters and digits that are none there: fractions, Roman numerals, numbers in circles.
_NUMERALS = "¹²³¼-¾⁰⁴-⁹₀-₉⅐-ↂↅ-↉①-⒛⓪-⓿❶-➓〇〡-〩〸-〺㆒-㆕㈠-㈩㉈-㉏㉑-㉟㊀-㊉㊱-㊿"
# Signs that are parts of words there: accents that combine, points and vowel signs, some that stand alone.
_MARKS = (
    r"\u00ad\u02c2-\u02c5\u02d2-\u02df\u02e5-\u036f\u0375\u0378\u0379\u0384\u0385\u03f6\u0483-\u0487\u055a-\u055f"
    r"\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0615-\u061a\u064b-\u065e\u0670\u06d6-\u06e4\u06e7-\u06ed"
    r"\u06fd\u06fe\u070f\u0711\u0730-\u074c\u07a6-\u07b0\u07eb-\u07f3\u0900-\u0903\u093c\u093e-\u094e\u0951-\u0955"
    r"\u0962\u0963\u0981-\u0983\u09bc\u09be-\u09c4\u09c7\u09c8\u09cb-\u09cd\u09d7\u09e2\u09e3\u0a01-\u0a03\u0a3c"
    r"\u0a3e-\u0a4f\u0a81-\u0a83\u0abc\u0abe-\u0acf\u0b82\u0bbe-\u0bc2\u0bc6-\u0bc8\u0bca-\u0bcd\u0c01-\u0c03"
    r"\u0c3e-\u0c56\u0d3e-\u0d44\u0d46-\u0d48\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd"
)
_PURE = rf"[^\W\d_{_NUMERALS}]"
_LETTER = rf"(?:{_PURE}|[{_MARKS}]|&[aeiou](?:acute|grave|uml);)"
_WORD = rf"{_LETTER}(?:{_LETTER}|\d)*(?:[.!?]{_LETTER}(?:{_LETTER}|\d)*)*"
_QUOTE = r"(?:['\u0092’]|&apos;)"
_ANY_QUOTE = r"(?:['\u0092’`\u0091‘‛]|&apos;)"
_ENDING = rf"{_QUOTE}(?:[msd]|re|ve|ll)"
_NOT = rf"n{_ANY_QUOTE}t"
_NUMBER = r"(?:\d+(?:[.:,\u00ad\u066b\u066c]\d+)*|(?:[.:,\u00ad\u066b\u066c]\d+)+)"
_PART = r"[a-z0-9]+(?:-[a-z]+){0,2}"
_SIGN = rf"[^\W_{_NUMERALS}]"
_PIECE = rf"(?:[dol]{_ANY_QUOTE}{_SIGN})?{_SIGN}+"
_THING = rf"{_PIECE}(?:[-_\u058a\u2010\u2011]{_PIECE})*"
_CAPITALS = r"(?-i:[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+)"
_ACRONYM = r"(?:(?:Canada|Sino|Korean|EU|Japan|non)-U\.S|U\.S\.-U\.(?:K|S\.S\.R)|[a-z](?:\.[a-z])*)"
_HYPHENATED = r"[a-z0-9][a-z0-9.,\u00ad]*(?:-(?:[a-z](?:\.[a-z])+\.|[a-z0-9\u00ad]+))+"

# Followed by a period; the program keeps two lists, by what usually comes next.
_SHORT = (
    "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu(?:rs)?|fri"
    "|ala|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt"
    "|wisc?|wyo|(?-i:[A])z|(?-i:[A])rk|(?-i:[D])el|(?-i:[I])ll|(?-i:[L])a|(?-i:[M])ass|(?-i:[M])iss|(?-i:[O])re"
    "|(?-i:[P])a|(?-i:[T])ex|(?-i:[W])ash"
    "|inc|cos?|corp|pp?t[ye]s?|ltd|plc|rt|bancorp|bhd|assn|univ|intl|sys|tel|est|ext|sq|jr|bros|(?:ed|ph)\\.d"
    "|esq|etc|al|seq|bldg"
)
_TITLE = (
    "mrs?|ms|(?-i:[M])iss|drs?|profs?|sens?|reps?|attys?|lt|col|gen|messrs|govs?|adm|rev|maj|sgt|cpl|pvt|capt|ste?"
    "|ave|pres|lieut|hon|brig|co?mdr|pfc|spc|supts?|det|mt|ft|adj|adv|asst|assoc|ens|insp|mlle|mme|msgr|sfc|sr"
    "|vs|alex|wm|jos|cie|a\\.k\\.a|cf|treas|ph|invt|elec|natl|m[ft]g|dept|blvd|rd"
)
_NUMBERED = "ca|figs?|prop|nos?|art|bldg|pp|op"
_STARTERS = (
    "About|According|Additionally|After|An|A|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More"
    "|Mr\\.|Ms\\.|Now|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We"
    "|When|While|What|Yet|You"
)
_FILES = (
    "bat|bmp|bz2|class|cgi|cpp|c|dll|docx?|exe|gif|gz|html?|h|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql"
    "|tar|txt|wav|xml|x|zip"
)
_URL_END = r"[^ \t\n\f\r\"<>|.!?(){},-]"


class _Rule(NamedTuple):
    match: re.Pattern[str]
    """Group 1 is the token; what is matched behind it must follow."""
    write: Callable[[str], str]


def _rule(token: str, behind: str = "", write: Callable[[str], str] = str.lower) -> _Rule:
    return _Rule(re.compile(rf"({token})(?:{behind})", re.IGNORECASE), write)


def _drop(_: str) -> str:
    return ""


def _joined(token: str) -> str:
    """A token of several words is held together by no-break spaces; its round brackets are words."""
    token = token.lower().replace(" ", "\u00a0")
    return token.replace("(", "-lrb-").replace(")", "-rrb-")


def _word(token: str) -> str:
    return token.lower().replace("\u00ad", "")


def _latex(quotes: str) -> str:
    single = re.sub("[\u0082\u0091‘‛‹]", "`", re.sub("[\u0092’›]|&apos;", "'", quotes))
    return re.sub("[\u0084\u0093“«]", "``", re.sub("[\u0094”»]", "''", single))


def _quoted(token: str) -> str:
    return re.sub(r"&apos;|[\u0092’]", "'", re.sub("[\u0091‘‛]", "`", token.lower()))


_RULES = (
    _rule(r"c\+\+|[cf]#"),
    _rule("can", "not"),
    _rule("gon|got|wan", "(?:na|ta)"),
    _rule("lem|gim", "me"),
    _rule("'t", "is|was"),
    _rule(
        r"<(?:[!?][a-z-][^>\n]*|/[a-z][\w:.-]*|[a-z][\w:.-]*"
        r"(?: +[a-z][\w:.-]*(?: *= *(?:'[^'\n]*'|\"[^\"\n]*\"|[a-z][\w:.-]*))?)* */?) *>",
        write=lambda token: token.lower().replace(" ", "\u00a0"),
    ),
    _rule(r"&(?:md|mdash|ndash);|[\u0096\u0097–—―]", write=_drop),
    _rule("&amp;", write=lambda _: "&"),
    _rule("&(?:ht|tl|ur|lr|qc|ql|qr|odq|cdq|#[0-9]+);"),
    _rule(_WORD, _ENDING, _word),
    _rule(r"[a-z\u00ad]*[a-mo-z]\u00ad?", _NOT, _word),
    _rule(_WORD, write=_word),
    _rule(
        rf"{_QUOTE}n{_QUOTE}?|[ldj]{_QUOTE}|dunkin{_QUOTE}|somethin{_QUOTE}|ol{_QUOTE}|{_QUOTE}em"
        rf"|{_QUOTE}[2-9]0s|{_QUOTE}till?|{_QUOTE}cause|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l"
    ),
    _rule(rf"cont'd\.?|(?-i:[A-HJ-XZn]){_ANY_QUOTE}{_PURE}{{2,}}|o{_ANY_QUOTE}o"),
    _rule(rf"{_PURE}+[aeiouy]{_ANY_QUOTE}(?-i:[aeiouA-Z]){_PURE}*"),
    _rule(rf"y{_QUOTE}", _PURE),
    _rule(rf"https?://[^ \t\n\f\r\"<>|(){{}}]+{_URL_END}"),
    _rule(
        r"(?:www\.(?:[^ \t\n\f\r\"<>|.!?(){},]+\.)+[a-z]{2,4}"
        r"|(?:(?-i:[^ \t\n\f\r\"`'<>|.!?(){},-_$])+\.)+(?:com|net|org|edu))"
        rf"(?:/[^ \t\n\f\r\"<>|()]+{_URL_END})?"
    ),
    _rule(
        r"<?[a-z0-9][^ \t\n\f\r\"<>|()\u00a0{}]*@"
        r"(?:[^ \t\n\f\r\"<>|(){}.\u00a0]+\.)*[^ \t\n\f\r\"<>|(){}.\u00a0]+>?"
    ),
    _rule(rf"@[a-z_][a-z_0-9]*|#{_LETTER}+"),
    _rule(_ENDING, "[^a-z]", _quoted),
    _rule(_NOT, "[^a-z]", _quoted),
    _rule(r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}"),
    _rule(rf"[-+]?{_NUMBER}", write=_word),
    _rule(r"[⁺⁻₊₋]?(?:[⁰¹²³⁴-⁹]+|[₀-₉]+)"),
    _rule(r"(?:\d{1,4}[- \u00a0])?\d{1,4}(?:\\?/|⁄)\d{1,4}", write=_joined),
    _rule(r"[¼-¾⅓-⅞]", write=lambda token: _FRACTIONS.get(token, token)),
    _rule(
        rf"-(?:rrb|lrb|rcb|lcb|rsb|lsb)-|c\.d\.s|pro-|anti-|s&p-500|s&ls|cap{_QUOTE}n|c{_QUOTE}est",
        write=_quoted,
    ),
    _rule(rf"{_PART}(?:\\?/{_PART}){{1,2}}"),
    _rule(r"(?-i:[A-Z]*)\$|#"),
    _rule(r"[¢£¤¥\u0080₠€]", write=lambda token: _CURRENCY.get(token, token)),
    # Before a word that begins a sentence, an initial's period ends the sentence before.
    _rule(r"[a-z]", rf"\.{_BREAK}+(?-i:{_STARTERS}){_BREAK}"),
    _rule(rf"(?:{_NUMBERED})\.", rf"{_BREAK}?\d"),
    _rule(r"(?:so|no)\.", rf"{_BREAK}+(?:Africa|Korea|Cal)"),
    _rule(r"(?:pt[ey]|co)\.", rf"{_SPACE}(?:ltd|lim)"),
    _rule(rf"(?:{_SHORT})\.", r"[\s\S][\s\S]"),
    _rule(rf"(?:{_SHORT})\."),
    _rule(rf"(?:{_TITLE}|{_ACRONYM})\."),
    _rule(rf"{_QUOTE}\d\d", _BREAK),
    _rule(rf"{_SIGN}+(?:\.{_SIGN}+)*\.(?:{_FILES})", rf"(?:{_BREAK}|[.?!,\"])"),
    _rule(rf"{_WORD}\.", "[,;:]", _word),
    _rule(
        r"(?:\(\d{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:\d{2,4}[- \u00a0])?\d{2,4}[- \u00a0])"
        r"\d{3,4}[- \u00a0]?\d{3,5}"
        r"|(?:(?:\+\+?)?\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5}",
        write=_joined,
    ),
    _rule(r"\"|&quot;|''", write=_drop),
    _rule("<<|>>"),
    _rule("<|&lt;", write=lambda _: "<"),
    _rule(">|&gt;", write=lambda _: ">"),
    _rule(r"[<>]?[:;=](?-i:[-o*']?[()DPdpO\\{@|\[\]])", "[^a-z0-9]", _joined),
    _rule(r"[\^x=~<>]\.\[\^x=~<>]|[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)", write=_joined),
    _rule(r"[()\[\]{}]", write=_BRACKETS.__getitem__),
    _rule("-+", write=lambda token: "" if len(token) < 5 else token),
    _rule(r"\.{3,5}|[.…]|[,;:]", write=_drop),
    _rule(r"[¡¿\u037e\u0589\u061f\u06d4\u0700-\u0702\u07fa、。]"),
    _rule(r"@+|#+|_+|\*+|(?:\\\*){1,3}"),
    _rule(r"[?!]+"),
    _rule(r"[=/]"),
    _rule(_HYPHENATED, write=_word),
    _rule(rf"{_HYPHENATED}\.", "[,;:]", _word),
    _rule(rf"(?:{_THING}|{_CAPITALS})\.", "[,;:]"),
    _rule(_THING),
    _rule(_CAPITALS, write=lambda token: token.lower().replace("&amp;", "&")),
    _rule("'", r"[a-z][^ \t\n\u00a0]", _drop),
    _rule(rf"{_ENDING}|{_NOT}", write=_quoted),
    _rule("[`‘-‟‹›«»\u0082\u0084\u0091-\u0094]{1,2}|'|&apos;", write=_latex),
    _rule(r"[+%&~^|\\¦§¨©¬®¯°-³´-º×÷†-•‰-‸⁂™←-⇿∀-⯿★\u2100-\u214f]"),
    _rule(
        r"[\u0387\u05be\u05c0\u05c3\u05c6\u05f3\u05f4\u0600-\u0603\u0606-\u060c\u0614\u061b\u061e\u066a\u066d"
        r"\u0703-\u070d\u07f6-\u07f8\u0964\u0965\u0e3f\u0e4f\u1fbd\u2016\u2017‣※‾-⁂⁄⁺-⁾₊-₎₤①-⒛⓪-⓿❶-➓"
        r"〒・\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6]"
    ),
)

# A no-break space may begin an address, but not behind another space.
_BLANK = re.compile(rf"[ \t]{_SPACE}*")
# Most of a caption: words of small letters that no rule treats as more than a word, with a space behind.
_PLAIN = re.compile(
    r"[ \t]*((?!(?:cannot|gonna|gotta|wanna|lemme|gimme)\b)[a-z]+)(?=[ \t])", re.IGNORECASE | re.ASCII
)


def tokenize(caption: str) -> list[str]:
    """The tokens of a caption: lower case; clitics split off (it 's, do n't); brackets are words."""
    text = caption.replace("\n", " ").replace("\r", " ") + _NEXT_LINE
    end, place = len(text) - len(_NEXT_LINE), 0
    tokens: list[str] = []
    while place < end:
        if plain := _PLAIN.match(text, place):
            tokens.append(plain.group(1).lower())
            place = plain.end()
        elif blank := _BLANK.match(text, place):
            place = blank.end()
        else:
            token, place = _longest(text, place)
            if token and token not in _DROPPED:
                tokens.append(token)
    return tokens


def _longest(text: str, place: int) -> tuple[str, int]:
    """The token that begins at a place, and the place behind it; a sign that no rule knows is no token."""
    longest, best = 0, None
    for rule in _RULES:
        if (match := rule.match.match(text, place)) and match.end() > longest:
            longest, best = match.end(), (rule, match)
    if best is None:
        return "", place + 1
    rule, match = best
    return rule.write(match.group(1)), match.end(1)
