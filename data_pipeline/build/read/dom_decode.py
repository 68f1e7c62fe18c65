"""The text of a page's bytes: by its mark, its HTTP header, its own declaration, or by what it is.

Labels are a closed table (after the WHATWG Encoding Standard, section 4.2): a page that names another
of Python's codecs does not get to run it.
"""

import re

_LABELS = {
    "utf-8": "utf-8 utf8 unicode-1-1-utf-8 utf-16 utf-16le utf-16be unicode",
    "cp1252": "windows-1252 cp1252 x-cp1252 iso-8859-1 iso8859-1 iso_8859-1 latin1 latin-1 l1 ascii us-ascii"
    " ansi ibm819 cp819",
    "iso8859-2": "iso-8859-2 iso8859-2 iso_8859-2 latin2 l2",
    "iso8859-3": "iso-8859-3",
    "iso8859-4": "iso-8859-4",
    "iso8859-5": "iso-8859-5 cyrillic",
    "iso8859-6": "iso-8859-6 arabic",
    "iso8859-7": "iso-8859-7 greek",
    "iso8859-8": "iso-8859-8 iso-8859-8-i hebrew",
    "cp1254": "windows-1254 cp1254 iso-8859-9 latin5",
    "iso8859-10": "iso-8859-10",
    "iso8859-13": "iso-8859-13",
    "iso8859-14": "iso-8859-14",
    "iso8859-15": "iso-8859-15 latin-9 latin9",
    "cp1250": "windows-1250 cp1250 x-cp1250",
    "cp1251": "windows-1251 cp1251 x-cp1251 win-1251",
    "cp1253": "windows-1253 cp1253",
    "cp1255": "windows-1255 cp1255",
    "cp1256": "windows-1256 cp1256",
    "cp1257": "windows-1257 cp1257",
    "cp1258": "windows-1258 cp1258",
    "cp874": "windows-874 tis-620 iso-8859-11",
    "cp866": "ibm866 cp866 866",
    "koi8-r": "koi8-r koi8 koi",
    "koi8-u": "koi8-u koi8-ru",
    "mac-roman": "macintosh mac x-mac-roman",
    "gb18030": "gb18030 gbk gb2312 gb_2312-80 x-gbk chinese",
    "big5hkscs": "big5 big5-hkscs x-x-big5 cn-big5",
    "cp932": "shift_jis shift-jis sjis x-sjis windows-31j ms_kanji",
    "euc_jp": "euc-jp x-euc-jp",
    "iso2022_jp": "iso-2022-jp",
    "cp949": "euc-kr ks_c_5601-1987 windows-949 korean ksc5601",
}
_CODECS = {label: codec for codec, labels in _LABELS.items() for label in labels.split()}
_HEADER_CHARSET = re.compile(r"""charset\s*=\s*["']?([A-Za-z0-9_.:-]+)""", re.IGNORECASE)
_META_CHARSET = re.compile(rb"""<meta[^>]{1,400}?charset\s*=\s*["']?([A-Za-z0-9_.:-]+)""", re.IGNORECASE)
_XML_CHARSET = re.compile(rb"""<\?xml[^>]{1,200}?encoding=["']([A-Za-z0-9_.:-]+)""")
_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
# A page of another encoding than it says shows as more replaced characters than this.
_MAX_REPLACED = 0.02


def decode(page: bytes, content_type: str = "") -> str:
    """By its byte order mark; UTF-8 where it is that; else as header or page declare; else Windows-1252."""
    for mark, codec in _MARKS:
        if page.startswith(mark):
            return page[len(mark) :].decode(codec, errors="replace")
    # Bytes of ISO-2022-JP, which it escapes by this one, are all ASCII.
    if b"\x1b" not in page or "iso2022_jp" not in _declared(page, content_type):
        try:
            return page.decode("utf-8")
        except UnicodeDecodeError:
            pass
    for codec in _declared(page, content_type):
        text = page.decode(codec, errors="replace")
        if text.count("\ufffd") <= _MAX_REPLACED * len(text):
            return text
    return page.decode("cp1252", errors="replace")


def _declared(page: bytes, content_type: str) -> list[str]:
    labels = [m.group(1) for m in [_HEADER_CHARSET.search(content_type)] if m]
    found = (_XML_CHARSET.search(page, 0, 1024), _META_CHARSET.search(page, 0, 4096))
    labels += [m.group(1).decode("ascii") for m in found if m]
    return [_CODECS[label.lower()] for label in labels if label.lower() in _CODECS]
