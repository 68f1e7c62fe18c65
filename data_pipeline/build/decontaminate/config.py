"""What counts as a benchmark's picture or text in a dataset."""

from pydantic import BaseModel, ConfigDict, Field


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageSearch(_Strict):
    distance: int = Field(
        10, ge=0, le=15, description="bits of 64 in which two pHashes may differ; half below 32 pixels"
    )
    similarity: float = Field(0.75, ge=-1, le=1, description="of the thumbnails of such a pair")
    mirror: bool = Field(True, description="a mirrored picture counts too")
    embedding: float = Field(0.9, ge=-1, le=1, description="cosine, where the caller gives an `embed`")


class TextSearch(_Strict):
    """Shared n-grams of words, as GPT-3 (appendix C) looks for them. Its threshold of 10 documents keeps
    common phrases out; an item of which nearly all is there is found however often it leaked."""

    ngram: int = Field(13, ge=4, le=50, description="words; 8 finds more and is wrong more often")
    max_samples: int = Field(10, ge=1, description="an n-gram of more samples is common language")
    max_items: int = Field(5, ge=1, description="an n-gram of more items is the benchmark's own template")
    min_rare: int = Field(1, ge=1, description="n-grams, neither common nor template, that make a hit")
    whole: float = Field(0.8, gt=0, le=1, description="share of an item's n-grams that always makes a hit")
    min_words: int = Field(5, ge=1, description="shorter items are not searched for")


class DecontaminateConfig(_Strict):
    remove: bool = Field(False, description="leave out what was found; otherwise it is only reported")
    images: ImageSearch | None = ImageSearch()
    texts: TextSearch | None = TextSearch()
    question_keys: tuple[str, ...] = ("question", "query", "prompt", "instruction", "problem")
    answer_keys: tuple[str, ...] = (
        "answer",
        "answers",
        "multiple_choice_answer",
        "output",
        "response",
        "label",
        "caption",
        "captions",
    )
    max_bytes: int = Field(2 * 2**30, ge=1, description="a larger file of the benchmark is named, not read")
    shown: int = Field(100, ge=0, description="pairs of each kind on the page")
