"""The one sample: every document, caption, PDF page and dialogue has this shape, on disk and in memory.

Order lives in `segments`; pixels in `images`; everything about a picture in `media`, index-aligned with
`images`. The Arrow schema is fixed and versioned, never inferred from data. `images` is the last column,
so that a scan of the metadata never touches pixels, and its storage equals that of `datasets.Image`. Every
column is of a type that `datasets` reads, in Arrow and in Parquet.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from blake3 import blake3

SCHEMA_VERSION = 2  # 1 had maps of scores
KINDS = ("interleaved", "caption", "pdf", "instruct", "video", "text")
SEGMENT_TYPES = ("text", "image", "video", "page_break", "eod")

# Not a map, which `datasets` refuses.
_SCORES = pa.list_(pa.struct([("key", pa.string()), ("value", pa.float32())]))
_SEGMENT = pa.struct(
    [
        pa.field("type", pa.string(), nullable=False),
        ("text", pa.string()),
        ("media", pa.int32()),
        ("role", pa.string()),
        ("turn", pa.int16()),
        ("loss", pa.float32()),
        ("bbox", pa.list_(pa.float32())),
        ("sim", pa.float32()),
    ]
)
_MEDIA = pa.struct(
    [
        pa.field("media_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        ("mime", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("orig_width", pa.int32()),
        ("orig_height", pa.int32()),
        ("nbytes", pa.int64()),
        ("url", pa.string()),
        ("alt", pa.string()),
        ("page", pa.int32()),
        ("frame", pa.int32()),
        ("time_s", pa.float32()),
        ("phash", pa.uint64()),
        ("scores", _SCORES),
        (
            "source_ref",
            pa.struct(
                [
                    ("path", pa.string()),
                    ("member", pa.string()),
                    ("offset", pa.int64()),
                    ("size", pa.int64()),
                ]
            ),
        ),
        ("license", pa.string()),
        ("opt_out", pa.bool_()),
        ("error", pa.string()),
    ]
)
_SYNTHETIC = pa.struct(
    [
        ("generator", pa.string()),
        ("generator_version", pa.string()),
        ("prompt_id", pa.string()),
        ("seed", pa.int64()),
        ("params_json", pa.string()),
        ("parent_ids", pa.list_(pa.string())),
    ]
)
_LINEAGE = pa.struct(
    [
        ("step", pa.string()),
        ("version", pa.string()),
        ("config_hash", pa.string()),
        ("action", pa.string()),
        ("reason", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("schema_version", pa.int16(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        ("url", pa.string()),
        ("domain", pa.string()),
        ("date", pa.string()),
        ("license", pa.string()),
        ("lang", pa.string()),
        ("lang_score", pa.float32()),
        pa.field("segments", pa.list_(_SEGMENT), nullable=False),
        pa.field("media", pa.list_(_MEDIA), nullable=False),
        ("scores", _SCORES),
        ("synthetic", _SYNTHETIC),
        ("lineage", pa.list_(_LINEAGE)),
        ("n_text_tokens", pa.int32()),
        ("n_image_tokens", pa.int32()),
        ("general_metadata", pa.string()),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
    ],
    metadata={"fovea_schema_version": str(SCHEMA_VERSION)},
)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One element of the sequence. `media` indexes `Sample.media`; the same picture may come twice.

    `role` is None in documents; `system`, `user` or `assistant` in dialogues; `alt` or `recaption` for
    the captions of an image. `loss` weighs the segment's tokens (None: the stage decides).
    `bbox` is (x0, y0, x1, y1) as fractions of the page or image.
    """

    type: str
    text: str | None = None
    media: int | None = None
    role: str | None = None
    turn: int | None = None
    loss: float | None = None
    bbox: list[float] | None = None
    sim: float | None = None


@dataclass(frozen=True, kw_only=True)
class Media:
    """Everything known about one picture; `media_id` is the blake3 of its original bytes."""

    media_id: str
    kind: str = "image"
    mime: str | None = None
    width: int | None = None
    height: int | None = None
    orig_width: int | None = None
    orig_height: int | None = None
    nbytes: int | None = None
    url: str | None = None
    alt: str | None = None
    page: int | None = None
    frame: int | None = None
    time_s: float | None = None
    phash: int | None = None
    scores: dict[str, float] | None = None
    source_ref: dict[str, Any] | None = None
    license: str | None = None
    opt_out: bool | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training sample of any kind. `image_bytes[i]` holds the encoded bytes of `media[i]`."""

    id: str
    kind: str
    source: str
    segments: tuple[Segment, ...]
    media: tuple[Media, ...] = ()
    image_bytes: tuple[bytes | None, ...] = field(default=(), repr=False)
    url: str | None = None
    domain: str | None = None
    date: str | None = None
    license: str | None = None
    lang: str | None = None
    lang_score: float | None = None
    scores: dict[str, float] | None = None
    synthetic: dict[str, Any] | None = None
    lineage: tuple[dict[str, str], ...] | None = None
    n_text_tokens: int | None = None
    n_image_tokens: int | None = None
    general_metadata: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"sample {self.id}: kind {self.kind!r} is none of {', '.join(KINDS)}")
        if len(self.image_bytes) != len(self.media):
            raise ValueError(
                f"sample {self.id}: {len(self.media)} media but {len(self.image_bytes)} image_bytes"
            )
        for i, s in enumerate(self.segments):
            if s.type not in SEGMENT_TYPES:
                raise ValueError(
                    f"sample {self.id}: segment {i} has type {s.type!r}, "
                    f"allowed are {', '.join(SEGMENT_TYPES)}"
                )
            if s.type == "image" and not (s.media is not None and 0 <= s.media < len(self.media)):
                raise ValueError(
                    f"sample {self.id}: segment {i} points to media {s.media}, "
                    f"the sample has {len(self.media)}"
                )

    @property
    def text(self) -> str:
        """All text segments, in order, one a line: the view that text filters judge."""
        return "\n".join(s.text for s in self.segments if s.text)

    def to_row(self) -> dict[str, Any]:
        """The sample as a row of `SCHEMA`."""
        # `vars`, not `dataclasses.asdict`: its deep copies were half of a build's time.
        row: dict[str, Any] = {k: v for k, v in vars(self).items() if k != "image_bytes"}
        row["schema_version"] = SCHEMA_VERSION
        row["segments"] = [dict(vars(s)) for s in self.segments]
        row["media"] = [{**vars(m), "scores": _pairs(m.scores)} for m in self.media]
        row["scores"] = _pairs(self.scores)
        row["images"] = [{"bytes": b, "path": None} for b in self.image_bytes]
        return row

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Sample":
        """A row of `SCHEMA` (from `pyarrow`'s `to_pylist`) as a sample.

        Raises ValueError where the row was written under another schema version.
        """
        version = row.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"sample {row.get('id')}: schema version {version}, this code reads {SCHEMA_VERSION}"
            )
        names = {f.name for f in dataclasses.fields(cls)}
        kept = {k: v for k, v in row.items() if k in names}
        kept["segments"] = tuple(Segment(**s) for s in row["segments"])
        kept["media"] = tuple(Media(**{**m, "scores": _mapping(m["scores"])}) for m in row["media"])
        kept["image_bytes"] = tuple(i["bytes"] for i in row.get("images") or ())
        kept["scores"] = _mapping(row.get("scores"))
        kept["lineage"] = tuple(row["lineage"]) if row.get("lineage") is not None else None
        return cls(**kept)


def _pairs(scores: dict[str, float] | None) -> list[dict[str, Any]] | None:
    return None if scores is None else [{"key": k, "value": v} for k, v in scores.items()]


def _mapping(pairs: list[dict[str, Any]] | None) -> dict[str, float] | None:
    return None if pairs is None else {p["key"]: p["value"] for p in pairs}


def content_id(*parts: str | bytes) -> str:
    """blake3-128, as 32 hex digits, of length-prefixed parts: stable over reruns and machines."""
    h = blake3()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        h.update(len(data).to_bytes(8, "little"))
        h.update(data)
    return h.hexdigest(length=16)
