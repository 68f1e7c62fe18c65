"""Taking samples back from a built dataset: by id, address, domain, generator or picture.

The shards stay as they are; what is withdrawn is excluded under the step "withdraw", on top of what was
withdrawn before. To delete it for good, write a copy: `fovea data export DIR --to fovea`.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data_pipeline.build.directory import locked
from data_pipeline.errors import ConfigError, printable
from data_pipeline.manifest import Manifest, read_manifest
from data_pipeline.view import Exclusion, View, exclude, light_rows, read_exclusions

STEP = "withdraw"
_COLUMNS = ("id", "url", "domain", "synthetic", "media")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Withdrawal:
    """`samples`, `images`: what no call before excluded. `unknown`: what was named and matches nothing.
    `generators`: the models that wrote samples of the dataset, as they may be named."""

    manifest: Manifest
    samples: int
    images: int
    unknown: dict[str, tuple[str, ...]]
    generators: tuple[str, ...] = ()


def withdraw(
    directory: Path,
    *,
    ids: Iterable[str] = (),
    urls: Iterable[str] = (),
    domains: Iterable[str] = (),
    generators: Iterable[str] = (),
    media_ids: Iterable[str] = (),
    reason: str = "opted out",
) -> Withdrawal:
    """Exclude what is named, and every synthetic sample that was made from a sample that is excluded here.

    `urls` are addresses of pages or of images, http and https alike; one that ends in `*` stands for all that
    begin so. `domains` hold with all below them. `generators` are names, or `name:version`. An image that is
    named by its address or `media_id` leaves its document; a caption or a dialogue goes with it.
    Raises ConfigError where nothing is named, PreflightError where another process works on the dataset.
    """
    wanted = _Wanted.of(ids, urls, domains, generators, media_ids)
    directory = Path(directory)
    read_manifest(directory)  # a lock would make the directory
    with locked(directory):
        manifest = read_manifest(directory)
        earlier, made = _earlier(directory, manifest)
        found = _found(directory, manifest, wanted, earlier, reason)
        before = {(e.id, e.media_id) for e in earlier}
        call = {"reason": reason, **{kind: len(v) for kind, v in wanted.named.items() if v}}
        if any((e.id, e.media_id) not in before for e in found) or not made:
            made = [*made, call]  # else a call that was killed at its very end would stand here twice
        changed = exclude(directory, STEP, [*earlier, *found], {"withdrawals": made})
    new = [e for e in _earlier(directory, changed)[0] if (e.id, e.media_id) not in before]
    return Withdrawal(
        manifest=changed,
        samples=sum(e.media_id is None for e in new),
        images=sum(e.media_id is not None for e in new),
        unknown={kind: tuple(sorted(v - wanted.met[kind])) for kind, v in wanted.named.items()},
        generators=tuple(sorted(wanted.wrote)),
    )


def describe(withdrawal: Withdrawal) -> list[str]:
    """The summary for a terminal."""
    lines = [f"withdrawn: {withdrawal.samples:,} samples, and {withdrawal.images:,} images of documents"]
    for kind, values in withdrawal.unknown.items():
        if values:
            more = f", and {len(values) - 5:,} more" if len(values) > 5 else ""
            shown = ", ".join(printable(v) for v in values[:5])
            lines.append(f"  {len(values):,} {kind} match nothing: {shown}{more}")
    if withdrawal.unknown.get("generators"):
        known = ", ".join(printable(name) for name in withdrawal.generators) or "none"
        lines.append(f"  models that wrote samples: {known}")
    return lines


def _earlier(directory: Path, manifest: Manifest) -> tuple[list[Exclusion], list[Any]]:
    record = next((e for e in manifest.exclusions if e.step == STEP), None)
    if record is None:
        return [], []
    return list(read_exclusions(directory, record)), list(record.made.get("withdrawals", ()))


@dataclass(frozen=True)
class _Wanted:
    """What is asked for, by kind, ready for one look-up a row; and what of it was met."""

    named: dict[str, set[str]]
    urls: dict[str, str]  # normal form: as it was named
    starts: list[str]  # sorted, none the beginning of another
    start_named: dict[str, str]
    met: dict[str, set[str]] = field(default_factory=dict)
    wrote: set[str] = field(default_factory=set)  # every model that is named in a row

    @classmethod
    def of(
        cls,
        ids: Iterable[str],
        urls: Iterable[str],
        domains: Iterable[str],
        generators: Iterable[str],
        media_ids: Iterable[str],
    ) -> "_Wanted":
        named = {
            "ids": set(ids),
            "urls": set(urls),
            "domains": {d.lower().strip(".") for d in domains},
            "generators": set(generators),
            "media_ids": set(media_ids),
        }
        if not any(named.values()):
            raise ConfigError(
                "nothing is named to withdraw: name ids, addresses (url), domains, generators or images"
            )
        if empty := [kind for kind, values in named.items() if values & {"", "*"}]:
            raise ConfigError(f"an empty entry among {empty[0]} would withdraw everything")
        exact = {normal_url(u): u for u in named["urls"] if not u.endswith("*")}
        starting = {normal_url(u[:-1]): u for u in named["urls"] if u.endswith("*")}
        starts: list[str] = []
        for start in sorted(starting):
            if not starts or not start.startswith(starts[-1]):
                starts.append(start)
        return cls(named, exact, starts, starting, {kind: set() for kind in named})

    def has(self, kind: str, value: str | None) -> bool:
        if value is None or value not in self.named[kind]:
            return False
        self.met[kind].add(value)
        return True

    def has_address(self, url: str | None, domain: str | None = None) -> bool:
        if not url and not domain:
            return False
        key = normal_url(url or "")
        return self._has_url(key) | self._has_domain(domain or _host(key))

    def _has_url(self, key: str) -> bool:
        if exact := self.urls.get(key):
            self.met["urls"].add(exact)
        at = bisect_right(self.starts, key)
        begins = at > 0 and key.startswith(self.starts[at - 1])
        if begins:
            # All that were named and begin so, also those that stand in for one another.
            for end in range(len(self.starts[at - 1]), len(key) + 1):
                if start := self.start_named.get(key[:end]):
                    self.met["urls"].add(start)
        return bool(exact) or begins

    def _has_domain(self, domain: str) -> bool:
        labels = domain.lower().strip(".").split(".") if self.named["domains"] else []
        met = [self.has("domains", ".".join(labels[i:])) for i in range(len(labels))]
        return any(met)


def _found(
    directory: Path, manifest: Manifest, wanted: _Wanted, earlier: list[Exclusion], reason: str
) -> list[Exclusion]:
    found: list[Exclusion] = []
    children: dict[str, list[str]] = {}
    everything = View()  # also what other steps exclude today
    for _, row in light_rows(directory, columns=_COLUMNS, manifest=manifest, view=everything):
        for parent in (row["synthetic"] or {}).get("parent_ids") or ():
            children.setdefault(parent, []).append(row["id"])
        # Not `any`: each kind notes what of it was met.
        if (
            wanted.has("ids", row["id"])
            | _made_by(row, wanted)
            | wanted.has_address(row["url"], row["domain"])
        ):
            found.append(Exclusion(row["id"], None, reason))
        for media in row["media"]:
            if wanted.has("media_ids", media["media_id"]) | wanted.has_address(media["url"]):
                found.append(Exclusion(row["id"], media["media_id"], reason))
    whole = {e.id for e in (*earlier, *found) if e.media_id is None}
    # Parents that lie in another dataset are known here by their ids alone.
    parents = [i for i in wanted.named["ids"] if i in children and wanted.has("ids", i)]
    left = [*whole, *parents]
    while left:
        for child in children.get(left.pop(), ()):
            if child not in whole:
                whole.add(child)
                left.append(child)
                found.append(Exclusion(child, None, reason, "made from a sample that was withdrawn"))
    return found


def _made_by(row: dict[str, Any], wanted: _Wanted) -> bool:
    made = row["synthetic"] or {}
    name, version = made.get("generator"), made.get("generator_version")
    if name is not None:
        wanted.wrote.add(name)
    return wanted.has("generators", name) | wanted.has("generators", f"{name}:{version}")


def normal_url(url: str) -> str:
    """The address without scheme, default port and fragment, the host in small letters; other names as is."""
    try:
        parts = urlsplit(url.strip())
        if parts.scheme not in _PORTS or not parts.hostname:
            return url
        port = "" if parts.port in (None, _PORTS[parts.scheme]) else f":{parts.port}"
    except ValueError:
        return url
    query = f"?{parts.query}" if parts.query else ""
    return f"//{parts.hostname.strip('.')}{port}{parts.path or '/'}{query}"


def _host(key: str) -> str:
    return key[2:].split("/", 1)[0].split(":", 1)[0] if key.startswith("//") else ""
