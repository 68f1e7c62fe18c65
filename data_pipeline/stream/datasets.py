"""Several built datasets, read as one: each source by its name, wherever it stands."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import ConfigError, nearest
from data_pipeline.manifest import Manifest, read_manifest
from data_pipeline.stream.source import Source


@dataclass(frozen=True)
class Datasets:
    """`digest` identifies the content of all of them; training state refuses another one."""

    parts: tuple[tuple[Path, Manifest], ...]

    @classmethod
    def read(cls, directories: Iterable[Path]) -> "Datasets":
        """The manifests of all directories. Raises DataError where one is missing, ConfigError where two
        datasets have a source of the same name."""
        parts = tuple((d, read_manifest(d)) for d in directories)
        seen: dict[str, Path] = {}
        for directory, manifest in parts:
            for name in sorted({s.source for s in manifest.shards()}):
                if name in seen:
                    raise ConfigError(
                        f"source '{name}' stands in {seen[name]} and in {directory}: "
                        "names must differ; rename it in one of the data recipes and build that again."
                    )
                seen[name] = directory
        return cls(parts)

    @property
    def digest(self) -> str:
        joined = "\n".join(manifest.digest for _, manifest in self.parts)
        return hashlib.sha256(joined.encode()).hexdigest()[:32]

    def names(self, split: str) -> list[str]:
        """Sources with at least one sample in that split."""
        return sorted(
            {s.source for _, m in self.parts for s in m.shards(format="arrow", split=split) if s.samples}
        )

    def source(self, name: str, split: str) -> Source:
        """Raises ConfigError with the nearest name where no dataset has that source."""
        for directory, manifest in self.parts:
            if any(s.samples for s in manifest.shards(format="arrow", split=split, source=name)):
                return Source.open(directory, manifest, name, split)
        names = self.names(split)
        where = ", ".join(str(d) for d, _ in self.parts)
        raise ConfigError(
            f"no source '{name}' in split '{split}' of {where}{nearest(name, names)}\n"
            f"  Sources: {', '.join(names)}"
        )
