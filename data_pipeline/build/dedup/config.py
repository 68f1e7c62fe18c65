"""What counts as a copy, and what happens to copies. Nothing is removed that is not asked for here."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MinHash(_Strict):
    """Near-equal texts by datatrove's MinHash. The defaults are those of FineWeb: a pair of similarity 0.8 is
    found with probability 1 - (1 - 0.8^8)^14 = 0.92, one of 0.6 with 0.21."""

    ngram: int = Field(5, ge=1, le=50, description="words of a shingle")
    buckets: int = Field(14, ge=1, le=200)
    hashes: int = Field(8, ge=1, le=64, description="per bucket")
    seed: int = 1
    kinds: tuple[Literal["interleaved", "text", "pdf", "caption", "instruct"], ...] = Field(
        ("interleaved", "text", "pdf"), description="captions and dialogues repeat short texts rightly"
    )


class Documents(_Strict):
    exact: bool = Field(True, description="equal text (case and spaces aside) around equal images")
    minhash: MinHash | None = None
    image_sets: int | None = Field(
        None, ge=1, description="of samples that share one set of at least so many images the latest stays"
    )


class NearImages(_Strict):
    """Equal or nearly equal pictures. `captions` and `dialogues`: "image" drops a sample whose picture came
    before, "image_and_text" only if its text did too (COYO-700M). `documents`: "image" takes out the later
    picture, "sample" the document. A training picture that is also held out always goes."""

    distance: int = Field(
        10, ge=0, le=15, description="bits of 64 in which two pHashes may differ; half below 32 pixels"
    )
    similarity: float = Field(
        0.75, ge=-1, le=1, description="of the thumbnails of such a pair; -1 trusts the hashes alone"
    )
    mirror: bool = Field(True, description="a mirrored picture is a copy too")
    captions: Literal["image", "image_and_text"] | None = "image_and_text"
    dialogues: Literal["image", "image_and_text"] | None = "image_and_text"
    documents: Literal["image", "sample"] | None = None


class Images(_Strict):
    """An image that comes more often than a count is removed everywhere: buttons, banners, placeholders.

    OBELICS (its build scripts): a URL more than 10 times. MMC4 (section 3 of its paper): more than 10 copies.
    """

    max_url_count: int | None = Field(None, ge=1, description="http(s) addresses only")
    max_bytes_count: int | None = Field(None, ge=1)
    max_phash_count: int | None = Field(None, ge=1, description="counts copies as `near` sees them")
    near: NearImages | None = None


class DedupConfig(_Strict):
    documents: Documents = Documents()
    images: Images = Images()
