"""One reader for everything that comes as rows: a container says where rows are, a layout what they mean."""

import dataclasses
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.build.read.documents import document_item
from data_pipeline.build.read.files import Tree
from data_pipeline.build.read.layouts import (
    captions,
    cauldron,
    fovea,
    llava,
    messages,
    mmc4,
    obelics,
    questions,
    sequence,
)
from data_pipeline.build.read.layouts.fields import Found, NoPicture, Pictures, Unfit, as_metadata, sample_id
from data_pipeline.build.read.reading import IMAGE_SUFFIXES, Fault, Item, Stamp
from data_pipeline.build.read.rows.containers import (
    NAMED_SUFFIXES,
    SUFFIXES,
    describes_others,
    read_rows,
    row_files,
    units_of,
)
from data_pipeline.build.read.rows.row import Row, Unit
from data_pipeline.errors import ConfigError, DataError
from data_pipeline.sample import Sample

# By kind of source: its layouts, asked in this order; the last one says what was expected.
LAYOUTS: Mapping[str, Mapping[str, ModuleType]] = {
    "captions": {"captions": captions},
    "questions": {"llava": llava, "messages": messages, "cauldron": cauldron, "questions": questions},
    "interleaved": {"obelics": obelics, "mmc4": mmc4, "sequence": sequence},
}
# Plain JSON says by its name what it holds; the other formats are rows whatever they are called.
_WORDS = {
    "captions": ("caption",),
    "questions": ("qa", "question", "dialog"),
    "interleaved": ("interleaved",),
}
PATTERNS = {
    kind: tuple(f"*{word}*{ending}" for word in words for ending in NAMED_SUFFIXES)
    for kind, words in _WORDS.items()
}
_SELF_CONTAINED = (".tar", ".tar.gz", ".tgz", ".arrow")  # their pictures do not lie beside them


class RowOptions(BaseModel):
    """The keys of a source of rows, beside its path."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: Literal[
        "auto",
        "captions",
        "questions",
        "cauldron",
        "llava",
        "messages",
        "obelics",
        "mmc4",
        "sequence",
        "fovea",
    ] = Field("auto", description="what a row means; auto: judged by the keys of each row")
    columns: Mapping[str, str] = Field(
        default_factory=dict, description="columns under other names: {name in the rows: name in the layout}"
    )
    files: str | None = Field(
        None, description="of a folder, the files whose names match this glob; else by their endings"
    )


@dataclass(frozen=True)
class RowReader:
    """The source `name` of kind `captions`, `questions` or `interleaved`, read from `tree`.

    A document (kind interleaved) is one sample, however long; a later step cuts it.
    """

    name: str
    kind: str
    license: str | None
    tree: Tree
    options: RowOptions = field(default_factory=RowOptions)

    def __post_init__(self) -> None:
        allowed = ("auto", "fovea", *LAYOUTS[self.kind])
        if self.options.layout not in allowed:
            raise ConfigError(
                f"source '{self.name}': layout '{self.options.layout}' is none of kind {self.kind}, "
                f"which has {', '.join(allowed)}"
            )

    def inputs(self) -> list[Stamp]:
        """Every file that the result depends on: those of rows, and the pictures beside them."""
        files = self._files()
        loose = [f for f in files if not f.lower().endswith(_SELF_CONTAINED)]
        folders = dict.fromkeys(d for f in loose for d in Row(f, "", {}).bases)
        try:
            pictures = {s.name: s for d in folders for s in self.tree.listing(IMAGE_SUFFIXES, d, deep=False)}
            return [*(self.tree.stamp(f) for f in files), *(pictures[n] for n in sorted(pictures))]
        except OSError as e:
            raise DataError(f"source '{self.name}' cannot be listed: {e}") from None

    def units(self) -> list[Unit]:
        """Parts of files, in a fixed order. Raises DataError where there is no file of rows."""
        try:
            return [unit for f in self._files() for unit in units_of(self.tree.stamp(f))]
        except OSError as e:
            raise DataError(f"source '{self.name}' cannot be listed: {e}") from None

    def read(self, unit: Unit) -> Iterator[Item]:
        for row in read_rows(self.tree, unit):
            yield self._item(row)

    def passed_over(self) -> list[str]:
        """Files that may hold rows, and that were not asked for: JSON under a name that does not tell."""
        if self.options.files is not None or self.tree.only is not None:
            return []
        found = self.tree.files(SUFFIXES)
        taken, present = set(self._files()), set(found)
        return [
            n
            for n in found
            if n not in taken and n.endswith(NAMED_SUFFIXES) and not describes_others(n, present)
        ]

    def place(self, name: str) -> str:
        return posixpath.join(self.tree.root, name)

    def _files(self) -> list[str]:
        try:
            files = row_files(self.tree, PATTERNS[self.kind], self.options.files)
        except (OSError, ValueError) as e:
            raise DataError(f"source '{self.name}' cannot be listed: {e}") from None
        if not files:
            wanted = (
                f"match '{self.options.files}'" if self.options.files else f"end in {', '.join(SUFFIXES)}"
            )
            raise DataError(
                f"source '{self.name}': no file of rows below {self.tree.root}; "
                f"read are names that {wanted}\n"
                "  Correct its `path` in the recipe, or say where the inputs are:  --inputs DIR"
            )
        return files

    def _item(self, row: Row) -> Item:
        value = row.value
        if isinstance(value, Fault):
            return Item.failed(value)
        if self.options.columns:
            value = {self.options.columns.get(k, k): v for k, v in value.items()}
            row = dataclasses.replace(row, value=value)
        try:
            return self._read(row, value)
        except NoPicture as e:
            return Item.failed(e.fault)
        except Unfit as e:
            fault = Fault(reason=e.reason, detail=e.detail, bad=e.bad, file=row.file, where=row.where)
            return Item.failed(fault)

    def _read(self, row: Row, value: Mapping[str, object]) -> Item:
        layout = self._layout(value)
        if layout is fovea:
            sample = fovea.read(row, self.name, self.license)
            return Item(file=row.file, where=row.where, sample=sample)
        found: Found = layout.read(row, Pictures(self.tree, row))
        return self._document(row, found) if layout.DOCUMENTS else self._sample(row, found)

    def _layout(self, value: Mapping[str, object]) -> ModuleType:
        layouts = LAYOUTS[self.kind]
        if self.options.layout != "auto":
            return fovea if self.options.layout == "fovea" else layouts[self.options.layout]
        if fovea.recognises(value):
            return fovea
        fitting = (layout for layout in layouts.values() if layout.recognises(value))
        return next(fitting, [*layouts.values()][-1])

    def _sample(self, row: Row, found: Found) -> Item:
        sample = Sample(
            id=sample_id(self.name, row, found),
            kind=found.kind,
            source=self.name,
            url=found.url or row.file,
            license=found.licence or self.license,
            segments=found.segments,
            media=tuple(p.media for p in found.pictures),
            image_bytes=tuple(p.data for p in found.pictures),
            scores=dict(found.scores) or None,
            general_metadata=as_metadata(found.metadata),
        )
        return Item(file=row.file, where=row.where, sample=sample)

    def _document(self, row: Row, found: Found) -> Item:
        metadata = as_metadata(found.metadata)
        item = document_item(
            list(found.blocks),
            source=self.name,
            file=row.file,
            where=row.where,
            licence=found.licence or self.license,
            min_chars=1,  # nothing at all is no document; the step that cuts applies the source's own limit
            step=f"read_{self.kind}",
        )
        assert item.sample is not None
        sims = iter(found.sims)
        segments = tuple(
            dataclasses.replace(s, sim=next(sims, None)) if s.type == "image" else s
            for s in item.sample.segments
        )
        sample = dataclasses.replace(
            item.sample,
            segments=segments,
            url=found.url or row.file,
            domain=_domain(found.url),
            general_metadata=metadata,
            scores=dict(found.scores) or None,
        )
        return dataclasses.replace(item, sample=sample)


def _domain(url: str | None) -> str | None:
    try:
        return (urlsplit(url).hostname if url else None) or None
    except ValueError:
        return None


def references(row: Row) -> list[str]:
    """The files that a row may name as its pictures, relative to the tree: for whoever lists what is read."""
    if isinstance(row.value, Fault):
        return []
    elements = [row.value, *(e for e in row.value.get("sequence") or [] if isinstance(e, dict))]
    named = (e.get(k) for e in elements for k in captions.IMAGE_KEYS)
    names = [n for n in named if isinstance(n, str) and "\0" not in n and len(n) < 4096]
    return [posixpath.normpath(posixpath.join(base, n)) for n in names for base in row.bases]


def kind_of(row: Row) -> str | None:
    """The kind of source that knows what such a row means; None where none does, or where its picture is only
    an address: nothing is fetched unless a recipe says so."""
    value = row.value
    if isinstance(value, Fault):
        return None
    if fovea.recognises(value):
        return {"caption": "captions", "instruct": "questions"}.get(str(value.get("kind")), "interleaved")
    for kind in ("interleaved", "questions"):
        if any(layout.recognises(value) for layout in LAYOUTS[kind].values()):
            return kind
    image = captions.image_of(row) if captions.recognises(value) else None
    at_an_address = isinstance(image, str) and image.startswith(("http://", "https://"))
    return "captions" if image and not at_an_address else None
