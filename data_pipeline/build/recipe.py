"""The recipe of a build: which sources, which limits, which shards. Unknown keys are errors."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_pipeline.build.dedup.config import DedupConfig
from data_pipeline.build.fetch.config import NOT_COMPARED, FetchConfig
from data_pipeline.build.filter.config import FilterConfig
from data_pipeline.build.images.limits import ImageLimits
from data_pipeline.build.read.pdf import PdfOptions
from data_pipeline.build.read.row_reader import RowOptions
from data_pipeline.build.read.source import DocumentSource, FileSource, SourceConfig
from data_pipeline.build.read.warc import WarcSource
from data_pipeline.build.synthesize.source import CALLS, SyntheticSource
from data_pipeline.page import apply_overrides, find_page, load_page
from data_pipeline.sample import SCHEMA_VERSION, content_id

RECIPES = Path(__file__).parent.parent / "recipes"


class HtmlSource(DocumentSource):
    kind: Literal["html"] = "html"


class InterleavedSource(DocumentSource, RowOptions):
    kind: Literal["interleaved"] = "interleaved"


class CaptionsSource(FileSource, RowOptions):
    kind: Literal["captions"] = "captions"


class QuestionsSource(FileSource, RowOptions):
    kind: Literal["questions"] = "questions"


class PdfSource(FileSource, PdfOptions):
    kind: Literal["pdf"] = "pdf"


class ScenesSource(SourceConfig):
    kind: Literal["scenes"] = "scenes"
    style: Literal["alt", "dense", "questions", "dialogue", "text"]
    count: int = Field(ge=1, description="scenes; `questions` makes `per_scene` samples of each")
    first: int = Field(0, ge=0, description="index of the first scene")
    seed: int = Field(0, description="two sources of one seed show the same scenes")
    size: int = Field(64, ge=32, le=1024, description="pixels of a side")
    per_scene: int = Field(2, ge=1, le=6, description="questions asked about one scene")


Source = Annotated[
    HtmlSource
    | WarcSource
    | InterleavedSource
    | CaptionsSource
    | QuestionsSource
    | PdfSource
    | SyntheticSource
    | ScenesSource,
    Field(discriminator="kind"),
]


class BuildRecipe(BaseModel):
    """Sources in, shards out. `tasks` sets how the inputs are divided, so the bytes depend on it;
    how many tasks run at once is a matter of the command line and changes nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = 0
    tasks: int = Field(2, ge=1, le=99_999)
    heldout: float = Field(
        0.1, ge=0, lt=1, description="share of images (and of text samples) never trained on"
    )
    bad_inputs: Literal["stop", "drop"] = "stop"
    images: ImageLimits = ImageLimits()
    filters: FilterConfig = Field(FilterConfig(), description="of every source that names none of its own")
    fetch: FetchConfig | None = Field(
        None, description="fetch images that are named by address; without it they are refused"
    )
    dedup: DedupConfig | None = Field(None, description="copies that the finished dataset leaves out")
    formats: tuple[Literal["arrow", "webdataset", "parquet"], ...] = ("arrow", "webdataset")
    shard_samples: int = Field(5000, ge=1)
    shard_bytes: int = Field(256 * 2**20, ge=1)
    sources: tuple[Source, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _coherent(self) -> "BuildRecipe":
        names = [s.name for s in self.sources]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"source names must differ, these come twice: {', '.join(twice)}")
        if "arrow" not in self.formats:
            raise ValueError("formats must hold 'arrow': training reads it; webdataset comes beside it")
        return self

    def filters_by_source(self) -> dict[str, FilterConfig]:
        return {s.name: s.filters or self.filters for s in self.sources}


def is_folder(recipe: str | Path) -> bool:
    """Whether this names a folder of documents. A bare name that a shipped recipe has is that recipe, even
    beside a folder of the same name: that one is `./name`."""
    return Path(recipe).is_dir() and str(recipe) not in {p.stem for p in RECIPES.glob("*.yaml")}


def load_build(path: str | Path, overrides: Sequence[str] = ()) -> tuple[BuildRecipe, Path]:
    """The recipe (a file, or the name of a shipped one) and the folder its relative paths count from."""

    def prepare(page: dict[str, Any]) -> dict[str, Any]:
        apply_overrides(page, list(overrides))
        return page

    file = find_page(path, RECIPES)
    return load_page(file, BuildRecipe, prepare), file.parent.resolve()


def recipe_page(recipe: BuildRecipe) -> dict[str, Any]:
    """The recipe to be kept with the dataset: reading it again gives the same recipe."""
    page = recipe.model_dump(mode="json", exclude={"bad_inputs"})
    # A key of a filter that is set overrides the preset, so only those are written that were set.
    page["filters"] = recipe.filters.model_dump(mode="json", exclude_unset=True)
    for source, written in zip(recipe.sources, page["sources"], strict=True):
        if source.filters is not None:
            written["filters"] = source.filters.model_dump(mode="json", exclude_unset=True)
    return page


def compared_page(recipe: BuildRecipe) -> dict[str, Any]:
    """What recipes share that make equal shards of equal inputs: no places, no paces, no policy on failures,
    and nothing that works on finished shards."""
    return recipe.model_dump(
        mode="json",
        exclude={
            "bad_inputs": True,
            "dedup": True,
            "sources": {"__all__": {"path", *CALLS}},
            "fetch": set(NOT_COMPARED),
        },
    )


def recipe_fingerprint(recipe: BuildRecipe) -> str:
    return content_id(str(SCHEMA_VERSION), json.dumps(compared_page(recipe), sort_keys=True))
