"""A row and a part of a file: what every container gives, whatever its format.

A file of n bytes is read in `parts(n)` parts, which depends on nothing else. Each row and each fault of the
file belongs to exactly one part, so the union of the parts is the file, for any number of them.
"""

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.build.read.reading import Fault

MAX_ROW = 64 * 2**20  # bytes of one row as it is stored: images in base64 stand inside the line


@dataclass(frozen=True)
class Unit:
    """Part number `part` of `parts` of a file."""

    file: str
    part: int = 0
    parts: int = 1

    def owns(self, index: int) -> bool:
        """Whether row (or block of rows) number `index` is of this part."""
        return index % self.parts == self.part


@dataclass(frozen=True)
class Row:
    """One record, or the fault in its place. `where` finds it in its file whatever the parts are.

    `images` holds pictures that lie beside the record in the same container (members of a tar) by extension;
    pictures in `value` are bytes, {"bytes", "path"}, data URIs, addresses, or names of files beside `file`.
    """

    file: str
    where: str
    value: dict[str, Any] | Fault
    images: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def bases(self) -> tuple[str, str]:
        """The folders where a picture named by the row is looked for."""
        folder = posixpath.dirname(self.file)
        return folder, posixpath.join(folder, "images")


def broken(file: str, where: str, detail: str, reason: str = "invalid record", bad: bool = True) -> Row:
    """A row that cannot be used, in its place."""
    return Row(file, where, Fault(reason=reason, detail=detail, bad=bad, file=file, where=where))


def mapping(file: str, where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        return broken(file, where, f"expected a mapping, found {type(value).__name__}")
    return Row(file, where, value)
