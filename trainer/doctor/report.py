"""What all ranks found, as a table with the fixes, as JSON, and as an exit code."""

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from data_pipeline.errors import printable
from trainer.doctor.finding import Finding, Status

CODES: dict[Status, int] = {"ok": 0, "skipped": 0, "warn": 1, "fail": 2}
"""The worst finding is the exit code."""

_COUNTED: dict[Status, str] = {"fail": "to mend", "warn": "to look at", "ok": "well", "skipped": "skipped"}
_SHOWN = 3  # hosts of a line; JSON names all


@dataclass(frozen=True)
class Row:
    """A finding, and everything that it is true of: hosts, or `host rank r` where ranks of a host differ."""

    name: str
    where: tuple[str, ...]
    status: Status
    said: str
    fix: str


@dataclass(frozen=True)
class Report:
    """`ranks` of `hosts` were examined in `seconds`."""

    ranks: int
    hosts: tuple[str, ...]
    seconds: float
    rows: tuple[Row, ...]

    @property
    def exit_code(self) -> int:
        return max((CODES[r.status] for r in self.rows), default=0)

    def to_json(self) -> dict[str, Any]:
        return {"exit_code": self.exit_code, **asdict(self)}

    @classmethod
    def from_json(cls, page: Mapping[str, Any]) -> "Report":
        rows = tuple(Row(**{**r, "where": tuple(r["where"])}) for r in page["rows"])
        return cls(page["ranks"], tuple(page["hosts"]), page["seconds"], rows)


def joined(found: Mapping[int, Iterable[Finding]], hosts: Mapping[int, str]) -> tuple[Row, ...]:
    """The findings of all ranks, by rank; what ranks found alike is one row. Of what is well the first
    figures stand for all."""
    groups: dict[tuple[str, ...], list[tuple[int, Finding]]] = {}
    looked: dict[str, set[int]] = {}
    for rank, findings in sorted(found.items()):
        for f in findings:
            said = f.said if CODES[f.status] else ""
            groups.setdefault((f.name, f.status, said, f.fix, *f.where), []).append((rank, f))
            looked.setdefault(f.name, set()).add(rank)
    rows = []
    for made in groups.values():
        first = made[0][1]
        where = first.where or _places({r for r, _ in made}, looked[first.name], hosts)
        rows.append(Row(first.name, where, first.status, first.said, first.fix))
    order = list(looked)
    return tuple(sorted(rows, key=lambda row: order.index(row.name)))


def _places(ranks: set[int], looked: set[int], hosts: Mapping[int, str]) -> tuple[str, ...]:
    places: list[str] = []
    for host in dict.fromkeys(hosts.values()):
        there = {r for r in looked if hosts[r] == host}
        those = there & ranks
        places += [host] if those and those == there else [f"{host} rank {r}" for r in sorted(those)]
    return tuple(places)


def table(report: Report, width: int | None = None) -> Iterator[str]:
    """Lines for the screen: check, where, result; and under a failure what mends it."""
    rows = [(r, _shown(r.where, report.hosts)) for r in report.rows]
    wide = [max([len(h), *(len(c) for c in cells)]) for h, cells in (
        ("check", [r.name for r, _ in rows]), ("where", [w for _, w in rows]), ("result", ["skipped"]),
    )]  # fmt: skip
    indent = sum(wide) + 2 * len(wide)
    width = max(indent + 40, width or shutil.get_terminal_size((118, 24)).columns)
    yield f"{'check':{wide[0]}}  {'where':{wide[1]}}  result"
    for row, where in rows:
        head = f"{row.name:{wide[0]}}  {where:{wide[1]}}  {row.status:{wide[2]}}  "
        yield from textwrap.wrap(head + printable(row.said), width, subsequent_indent=" " * indent)
        if row.fix:
            lead = " " * indent + "fix: "
            yield from textwrap.wrap(lead + printable(row.fix), width, subsequent_indent=" " * len(lead))
    counts = {s: sum(r.status == s for r in report.rows) for s in _COUNTED}
    told = ", ".join(f"{n} {_COUNTED[s]}" for s, n in counts.items() if n)
    of = f"{report.ranks} rank{'s' if report.ranks > 1 else ''} on {len(report.hosts)} node"
    yield f"{of}{'s' if len(report.hosts) > 1 else ''} in {report.seconds:.1f} s: {told}"


def _shown(where: tuple[str, ...], hosts: tuple[str, ...]) -> str:
    if set(where) == set(hosts) and len(hosts) > _SHOWN:
        return f"all {len(hosts)}"
    more = f" +{len(where) - _SHOWN}" if len(where) > _SHOWN else ""
    return ", ".join(where[:_SHOWN]) + more
