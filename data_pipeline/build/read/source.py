"""What every source on the page of a build recipe has: a name, a licence, filters of its own; and a place."""

from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.build.filter.config import FilterConfig


class SourceConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="the key in training mixtures")
    license: str | None = Field(None, description="of everything in the source, unless a record says its own")
    filters: FilterConfig | None = Field(None, description="instead of the recipe's own filters")


class FileSource(SourceConfig):
    path: str = Field(
        min_length=1, description="file, folder or fsspec URL; relative paths count from the recipe"
    )


class DocumentSource(FileSource):
    """Documents are filtered whole, then cut into samples."""

    max_chars: int = Field(2000, ge=1, description="a document is cut into samples of at most this text")
    max_images: int = Field(4, ge=1, description="... and at most so many images")
    min_chars: int = Field(20, ge=0, description="a sample without an image and with less text is dropped")
