"""What the layouts share: texts that are proved to be text, what is kept of a row, how it is refused."""

import base64
import json
import math
import posixpath
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from data_pipeline.build.cut import Block
from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.reading import Fault, Picture
from data_pipeline.build.read.rows.row import Row
from data_pipeline.sample import Segment, content_id

MAX_TEXT = 4 * 2**20  # characters of one text: a long novel has a quarter of it
MAX_METADATA = 4 * 2**20  # characters of JSON


class Unfit(Exception):
    """The row cannot become a sample. `reason` is a short, closed phrase."""

    def __init__(self, reason: str, detail: str, bad: bool = True):
        super().__init__(detail)
        self.reason, self.detail, self.bad = reason, detail, bad


class NoPicture(Exception):
    """A picture of the row cannot be used; the fault says why."""

    def __init__(self, fault: Fault):
        super().__init__(fault.detail)
        self.fault = fault


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a layout makes of a row: a caption or a dialogue (`segments`), or a document (`blocks`).

    `metadata` becomes `Sample.general_metadata` as JSON with sorted keys: every column that nothing else
    holds, under its own name. `sims` belong to the pictures of `blocks`, in their order.
    """

    kind: str
    segments: tuple[Segment, ...] = ()
    pictures: tuple[Picture, ...] = ()
    blocks: tuple[Block, ...] = ()
    sims: tuple[float | None, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    licence: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class Pictures:
    """Finds the pictures of one row, however the row holds them."""

    tree: Tree
    row: Row

    def find(self, value: Any, alt: str | None = None, url: str | None = None) -> Picture:
        """`value`: bytes, {"bytes", "path"}, {"url"}, a data URI, an address, or a file's name.

        `url` is where the picture came from, if the row says so. Raises NoPicture, and Unfit where the value
        is nothing of these.
        """
        if isinstance(value, dict):
            inline, name = value.get("bytes"), value.get("path")
            if isinstance(inline, bytes):
                return self._made(self.tree.inline(inline, _base_name(name), *self._place, alt), url)
            value = name or value.get("url")
        if isinstance(value, bytes):
            return self._made(self.tree.inline(value, None, *self._place, alt), url)
        if not isinstance(value, str) or not value:
            raise Unfit("missing image", f"expected an image, found {type(value).__name__}")
        return self._made(self.tree.picture(_unicode(value, "image"), self.row.bases, *self._place, alt), url)

    def has(self, name: str) -> bool:
        """Whether a file of that name lies where the row's pictures are looked for."""
        try:
            return any(self.tree.exists(posixpath.join(base, name)) for base in self.row.bases)
        except (OSError, ValueError):
            return False

    @property
    def _place(self) -> tuple[str, str]:
        return self.row.file, self.row.where

    @staticmethod
    def _made(found: Picture | Fault, url: str | None) -> Picture:
        if isinstance(found, Fault):
            raise NoPicture(found)
        return found if url is None else replace(found, media=replace(found.media, url=url))

    def block(self, value: Any, alt: str | None = None, url: str | None = None) -> Block:
        """The picture as a block of a document; one that cannot be used is cut, and the document stays."""
        try:
            return Block(picture=self.find(value, alt, url))
        except NoPicture as e:
            return Block(cut=e.fault)
        except Unfit as e:
            row = self.row
            fault = Fault(reason=e.reason, detail=e.detail, bad=e.bad, file=row.file, where=row.where)
            return Block(cut=fault)


def text(value: Any, name: str) -> str:
    """A text of the row without NUL characters; "" where there is none (null, or NaN as pandas writes it).

    Numbers are texts (answers often are). Raises Unfit for anything else, for a lone surrogate, for a text
    of more than MAX_TEXT characters.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise Unfit("invalid text", f"`{name}` is a {type(value).__name__}, expected a text")
    if len(value) > MAX_TEXT:
        detail = f"`{name}` has {len(value):,} characters, the limit is {MAX_TEXT:,}"
        raise Unfit("text too long", detail, bad=False)
    return _unicode(value, name).replace("\0", "")


def _unicode(value: str, name: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise Unfit("invalid text", f"`{name}` is no Unicode text: {e.reason} at {e.start}") from None
    return value


def listed(value: Any, name: str) -> list[Any]:
    """A list of the row; [] where there is none. Raises Unfit."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise Unfit("invalid record", f"`{name}` is a {type(value).__name__}, expected a list")
    return value


def licence(value: Mapping[str, Any]) -> str | None:
    """The row's own licence, as text or as {name, url}."""
    own = value.get("license")
    if isinstance(own, dict):
        own = " ".join(str(own[k]) for k in ("name", "url") if own.get(k))
    return text(own, "license") or None


def rest(value: Mapping[str, Any], taken: Collection[str]) -> dict[str, Any]:
    """The columns of a row that nothing else holds."""
    return {k: v for k, v in value.items() if k not in taken and v is not None}


def numbers(value: Mapping[str, Any], names: Collection[str]) -> dict[str, float]:
    """The columns among `names` that hold a number, as scores."""
    found = {k: value[k] for k in names if isinstance(value.get(k), int | float)}
    return {k: float(v) for k, v in found.items() if not isinstance(v, bool) and math.isfinite(v)}


def as_metadata(value: Mapping[str, Any]) -> str | None:
    """JSON with sorted keys, None of nothing. Bytes become base64, other objects their text. Raises Unfit."""
    if not value:
        return None
    try:
        made = json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)
        made.encode()
    except (ValueError, TypeError, RecursionError) as e:
        raise Unfit("invalid record", f"columns that cannot be kept as JSON: {e}") from None
    if len(made) > MAX_METADATA:
        detail = f"{len(made):,} characters of other columns, the limit is {MAX_METADATA:,}"
        raise Unfit("text too long", detail, bad=False)
    return made


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {str(k): _plain(v) for k, v in value.items()}
        case list() | tuple():
            return [_plain(v) for v in value]
        case bytes():
            return base64.b64encode(value).decode()
        case float():
            return value if math.isfinite(value) else None  # JSON has no NaN
        case None | str() | int():
            return value
    return str(value)


def _base_name(path: Any) -> str | None:
    """The last part only: a path would name folders of the machine where the row was made."""
    if not isinstance(path, str):
        return None
    return _unicode(path, "path").replace("\\", "/").rpartition("/")[2] or None


def media_of(pictures: tuple[Picture, ...]) -> tuple[str, ...]:
    """The ids of the pictures, for the sample's own id."""
    return tuple(p.media.media_id for p in pictures)


def sample_id(source: str, row: Row, found: "Found") -> str:
    texts: list[str] = []
    for s in found.segments:
        if s.text is not None:
            texts += [s.role, s.text] if found.kind == "caption" and s.role else [s.text]
    return content_id(source, row.file, row.where, *media_of(found.pictures), *texts)
