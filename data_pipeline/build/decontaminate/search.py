"""A dataset against a benchmark: what of the benchmark is in it, where, and what to leave out for that."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from data_pipeline.build.decontaminate.benchmark import Fault, Item, Picture, read_benchmark
from data_pipeline.build.decontaminate.config import DecontaminateConfig, ImageSearch
from data_pipeline.build.decontaminate.pictures import Embed, ImageHit, PictureIndex
from data_pipeline.build.decontaminate.texts import TextHit, TextIndex
from data_pipeline.build.dedup.corpus import Corpus
from data_pipeline.errors import ConfigError
from data_pipeline.manifest import read_manifest
from data_pipeline.view import Exclusion, View


@dataclass(frozen=True)
class Report:
    """What was looked for and what was found; `page` shows it, `exclusions` are what to leave out.

    `images` and `texts` hold every hit. `exclusions` is empty unless the configuration says `remove`.
    """

    dataset: str
    benchmark: str
    config: DecontaminateConfig
    pictures: int
    items: int
    too_short: int
    samples: int
    dataset_images: int
    faults: tuple[Fault, ...]
    images: tuple[ImageHit, ...]
    texts: tuple[TextHit, ...]
    exclusions: tuple[Exclusion, ...]
    corpus: Corpus
    picture_names: tuple[str, ...]
    item_list: tuple[Item, ...]
    directory: Path

    def summary(self) -> dict[str, int | float]:
        """Counts for the screen and for JSON; a picture or item that leaked often is found once."""
        return {
            "benchmark pictures": self.pictures,
            "benchmark pictures found": len({h.picture for h in self.images}),
            "benchmark items": self.items,
            "benchmark items found": len({h.item for h in self.texts}),
            "benchmark items too short to look for": self.too_short,
            "dataset images hit": len(self.images),
            "dataset samples hit by text": len({h.row for h in self.texts}),
            "unreadable in the benchmark": len(self.faults),
        }


def step_name(benchmark: Path) -> str:
    """Under which the exclusions are committed: one step for each benchmark."""
    name = re.sub(r"[^a-z0-9]+", "-", benchmark.resolve().name.lower()).strip("-")
    return f"decontaminate-{name or 'benchmark'}"


def decontaminate(
    directory: Path, benchmark: Path, config: DecontaminateConfig, *, embed: Embed | None = None
) -> Report:
    """Search the dataset in `directory` for the pictures and texts in `benchmark`.

    Sees the dataset as its other exclusions leave it, so that a repeated search finds the same. `embed` adds
    a comparison of pictures by what a model sees in them. Raises ConfigError where nothing can be looked for.
    """
    if not benchmark.is_dir():
        raise ConfigError(f"no benchmark at {benchmark}: a directory of pictures or of rows is expected")
    manifest = read_manifest(directory)
    view = View.open(directory, manifest, leave_out=step_name(benchmark))
    corpus = Corpus.of(directory, manifest, view)
    pictures, items, faults = _load(benchmark, config, embed)
    if not pictures.names and not items:
        raise ConfigError(
            f"nothing to look for in {benchmark}: no picture and no text could be read"
            + "".join(f"\n  {f.name}: {f.detail}" for f in faults[:5])
        )
    images = tuple(pictures.search(corpus))
    texts: tuple[TextHit, ...] = ()
    too_short = 0
    if config.texts is not None and items:
        index = TextIndex(items, config.texts)
        too_short = index.too_short
        with TemporaryDirectory(prefix="fovea-decontaminate-") as work:
            texts = tuple(index.search(corpus, Path(work)))
    return Report(
        dataset=manifest.name,
        benchmark=benchmark.name,
        config=config,
        pictures=len(pictures.names),
        items=len(items),
        too_short=too_short,
        samples=int(corpus.shown_rows.sum()),
        dataset_images=int(corpus.shown_images.sum()),
        faults=tuple(faults),
        images=images,
        texts=texts,
        exclusions=tuple(_exclusions(corpus, images, texts, pictures.names, items)) if config.remove else (),
        corpus=corpus,
        picture_names=tuple(pictures.names),
        item_list=tuple(items),
        directory=benchmark,
    )


def _load(
    benchmark: Path, config: DecontaminateConfig, embed: Embed | None
) -> tuple[PictureIndex, list[Item], list[Fault]]:
    pictures = PictureIndex(config.images or ImageSearch(), embed)
    items: list[Item] = []
    faults: list[Fault] = []
    for found in read_benchmark(benchmark, config):
        match found:
            case Picture() if config.images is not None:
                if (fault := pictures.add(found)) is not None:
                    faults.append(fault)
            case Item() if config.texts is not None:
                items.append(found)
            case Fault():
                faults.append(found)
    return pictures, items, faults


def _exclusions(
    corpus: Corpus,
    images: tuple[ImageHit, ...],
    texts: tuple[TextHit, ...],
    names: list[str],
    items: list[Item],
) -> Iterator[Exclusion]:
    for hit in images:
        sample, media_id = corpus.describe(hit.image)
        yield Exclusion(sample, media_id, "benchmark image", f"{names[hit.picture]}, by {hit.how}")
    for row, item in {h.row: h.item for h in reversed(texts)}.items():
        yield Exclusion(corpus.row(row, ("id",))["id"], None, "benchmark text", items[item].name)
