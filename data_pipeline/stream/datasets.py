"""Several built datasets, read as one: each source by its name, wherever it stands."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.errors import ConfigError, nearest
from data_pipeline.manifest import Manifest
from data_pipeline.stream.contents import manifest_at, view_at
from data_pipeline.stream.place import Place
from data_pipeline.stream.shards.opened import Shards
from data_pipeline.stream.source import Source
from data_pipeline.view import View


@dataclass(frozen=True)
class Datasets:
    """`digest` identifies the content of all of them; training state refuses another one."""

    parts: tuple[tuple[Place, Manifest], ...]
    shards: Shards = field(default_factory=Shards, repr=False, compare=False)
    format: str | None = None
    _views: dict[Place, View] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(
        cls,
        directories: Iterable[Path | str],
        *,
        base: Path = Path(),
        shards: Shards | None = None,
        format: str | None = None,
    ) -> "Datasets":
        """The manifests of all directories: local paths (relative ones count from `base`) or fsspec URLs.

        All sources share the limits of `shards`; `format` is that of `Source.open`. Raises DataError where a
        manifest is missing, ConfigError where two datasets have a source of the same name.
        """
        places = [Place.at(d, base) for d in directories]
        parts = tuple((place, manifest_at(place)) for place in places)
        seen: dict[str, Place] = {}
        for place, manifest in parts:
            for name in sorted({s.source for s in manifest.shards()}):
                if name in seen:
                    raise ConfigError(
                        f"source '{name}' stands in {seen[name]} and in {place}: "
                        "names must differ; rename it in one of the data recipes and build that again."
                    )
                seen[name] = place
        return cls(parts, shards or Shards(), format)

    @property
    def digest(self) -> str:
        joined = "\n".join(manifest.digest for _, manifest in self.parts)
        return hashlib.sha256(joined.encode()).hexdigest()[:32]

    def names(self, split: str) -> list[str]:
        """Sources with at least one sample in that split."""
        return sorted({s.source for _, m in self.parts for s in m.shards(split=split) if s.samples})

    def source(self, name: str, split: str) -> Source:
        """Raises ConfigError with the nearest name where no dataset has that source."""
        for place, manifest in self.parts:
            if any(s.samples for s in manifest.shards(split=split, source=name)):
                if place not in self._views:
                    self._views[place] = view_at(place, manifest)
                view = self._views[place]
                return Source.open(
                    place, manifest, name, split, format=self.format, shards=self.shards, view=view
                )
        names = self.names(split)
        where = ", ".join(str(place) for place, _ in self.parts)
        raise ConfigError(
            f"no source '{name}' in split '{split}' of {where}{nearest(name, names)}\n"
            f"  Sources: {', '.join(names)}"
        )
