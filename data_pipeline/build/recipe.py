"""The recipe of a build: which sources, which limits, which shards. Unknown keys are errors."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_pipeline.errors import ConfigError
from data_pipeline.page import apply_overrides, find_page, load_page
from data_pipeline.sample import SCHEMA_VERSION, content_id

RECIPES = Path(__file__).parent.parent / "recipes"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageLimits(_Strict):
    """An image beyond these is filtered out: its sample with it, or in a document the image alone."""

    max_pixels: int = Field(50_000_000, ge=1, description="checked from the header, before decoding")
    max_bytes: int = Field(64 * 2**20, ge=1, description="a larger image file is not read")
    min_side: int = Field(16, ge=1, description="pixels of the shorter side")
    max_aspect: float = Field(8.0, ge=1, description="longer side / shorter side")


class _Source(_Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="the key in training mixtures")
    license: str | None = Field(None, description="of everything in the source, unless a record says its own")


class _FileSource(_Source):
    path: str = Field(min_length=1, description="file or folder; relative paths count from the recipe")


class _DocumentSource(_FileSource):
    max_chars: int = Field(2000, ge=1, description="a document is cut into samples of at most this text")
    max_images: int = Field(4, ge=1, description="... and at most so many images")
    min_chars: int = Field(20, ge=0, description="a sample without an image and with less text is dropped")


class HtmlSource(_DocumentSource):
    kind: Literal["html"] = "html"


class InterleavedSource(_DocumentSource):
    kind: Literal["interleaved"] = "interleaved"


class CaptionsSource(_FileSource):
    kind: Literal["captions"] = "captions"


class QuestionsSource(_FileSource):
    kind: Literal["questions"] = "questions"


class PdfSource(_FileSource):
    kind: Literal["pdf"] = "pdf"
    dpi: int = Field(96, ge=18, le=600)
    page_pixels: int = Field(2_000_000, ge=1, description="cap of a rendered page")
    max_pages: int = Field(2000, ge=1, description="pages read of one file; the rest is counted as dropped")


class ScenesSource(_Source):
    kind: Literal["scenes"] = "scenes"
    style: Literal["alt", "dense", "questions", "dialogue", "text"]
    count: int = Field(ge=1, description="scenes; `questions` makes `per_scene` samples of each")
    first: int = Field(0, ge=0, description="index of the first scene")
    seed: int = Field(0, description="two sources of one seed show the same scenes")
    size: int = Field(64, ge=32, le=1024, description="pixels of a side")
    per_scene: int = Field(2, ge=1, le=6, description="questions asked about one scene")


Source = Annotated[
    HtmlSource | InterleavedSource | CaptionsSource | QuestionsSource | PdfSource | ScenesSource,
    Field(discriminator="kind"),
]


class BuildRecipe(_Strict):
    """Sources in, shards out. `tasks` sets how the inputs are divided, so the bytes depend on it;
    how many tasks run at once is a matter of the command line and changes nothing."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = 0
    tasks: int = Field(2, ge=1, le=99_999)
    heldout: float = Field(
        0.1, ge=0, lt=1, description="share of images (and of text samples) never trained on"
    )
    bad_inputs: Literal["stop", "drop"] = "stop"
    images: ImageLimits = ImageLimits()
    formats: tuple[Literal["arrow", "webdataset"], ...] = ("arrow", "webdataset")
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


def load_build(path: str | Path, overrides: Sequence[str] = ()) -> tuple[BuildRecipe, Path]:
    """The recipe (a file, or the name of a shipped one) and the folder its relative paths count from."""

    def prepare(page: dict[str, Any]) -> dict[str, Any]:
        apply_overrides(page, list(overrides))
        return page

    file = find_page(path, RECIPES)
    return load_page(file, BuildRecipe, prepare), file.parent.resolve()


def source_path(source: _FileSource, root: Path) -> Path:
    """Where the source lies. Raises ConfigError where nothing is there."""
    path = (root / source.path).resolve()
    if not path.exists():
        raise ConfigError(
            f"source '{source.name}': nothing at {path}\n"
            f"  Correct its `path` in the recipe ('{source.path}', counted from {root}),\n"
            f"  or say where the inputs are:  fovea data build RECIPE --inputs DIR"
        )
    return path


def recipe_fingerprint(recipe: BuildRecipe) -> str:
    """Equal for recipes that make equal bytes of equal inputs: no places, no policy on bad inputs."""
    page = recipe.model_dump(mode="json", exclude={"bad_inputs": True, "sources": {"__all__": {"path"}}})
    return content_id(str(SCHEMA_VERSION), json.dumps(page, sort_keys=True))
