"""What a source's filters may be told. Nothing set, nothing filtered; a preset is one of these, filled in."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.build.images.limits import ImageLimits

PresetName = Literal["none", "obelics", "mmc4", "mmc4-core", "datacomp-basic", "laion", "coyo"]
PersonalData = Literal["email", "ip", "phone"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextLimits(_Strict):
    """Limits of one text: of a paragraph (refused alone) or of all a sample's text (refused with the sample).

    Words are what white space separates, in lower case, without the non-letters around them, so languages
    that write no spaces want limits in characters. The measures are those of OBELICS (arXiv 2306.16527).
    """

    min_chars: int | None = Field(None, ge=0)
    max_chars: int | None = Field(None, ge=0)
    min_words: int | None = Field(None, ge=0)
    max_words: int | None = Field(None, ge=0)
    min_sentences: int | None = Field(None, ge=0, description="ended by . ! ? or their like")
    max_sentences: int | None = Field(None, ge=0)
    min_punctuation: float | None = Field(None, ge=0, le=1, description="marks / (words + marks)")
    punctuation_from: int = Field(0, ge=0, description="texts of fewer words + marks may lack punctuation")
    max_special: float | None = Field(None, ge=0, le=1, description="characters that are no letters")
    max_char_repetition: float | None = Field(
        None, ge=0, le=1, description="share of the most frequent of the repeated 10-character sequences"
    )
    max_word_repetition: float | None = Field(None, ge=0, le=1, description="share of repeated 5-word runs")
    min_stop_words: float | None = Field(None, ge=0, le=1, description="share of words; see `stop_words`")
    min_common_words: float | None = Field(None, ge=0, le=1, description="needs the list `common_words`")
    max_flagged_words: float | None = Field(None, ge=0, le=1, description="needs the list `flagged_words`")
    max_spam_words: float | None = Field(None, ge=0, le=1, description="needs the list `spam_words`")


class Repetition(_Strict):
    """Repeated lines, paragraphs and n-grams. Defaults: Gopher (arXiv 2112.11446), table A1.

    Paragraphs are a document's pieces of text. Shares are of lines or paragraphs, or of characters.
    """

    max_lines: float = Field(0.30, ge=0, le=1)
    max_line_chars: float = Field(0.20, ge=0, le=1)
    max_paragraphs: float = Field(0.30, ge=0, le=1)
    max_paragraph_chars: float = Field(0.20, ge=0, le=1)
    top_ngrams: dict[int, float] = Field(
        {2: 0.20, 3: 0.18, 4: 0.16}, description="characters in the most frequent n-gram of words, by n"
    )
    repeated_ngrams: dict[int, float] = Field(
        {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
        description="characters in n-grams of words that came before, by n",
    )


class FilterConfig(_Strict):
    """The filters of one source. `preset` fills the keys in; a key that is set here overrides it.

    Word lists are local files of one word or line each; none but 150 English function words is shipped.
    """

    preset: PresetName = "none"
    paragraph: TextLimits = Field(TextLimits(), description="documents only: a paragraph beyond these leaves")
    max_paragraph_count: int | None = Field(
        None, ge=1, description="documents of one host that may share a paragraph; of more one keeps it"
    )
    document: TextLimits = Field(TextLimits(), description="of all the text of a sample, of any kind")
    languages: tuple[str, ...] | None = Field(None, description="ISO 639-1 codes that are kept; None: any")
    min_lang_score: float | None = Field(None, ge=0, le=1, description="probability of the language found")
    repetition: Repetition | None = None
    personal_data: tuple[PersonalData, ...] = Field((), description="what is replaced by a placeholder")
    image_url_without: tuple[str, ...] = Field(
        (), description="documents: an image whose address holds one of these, in any case, leaves"
    )
    min_images: int | None = Field(None, ge=0, description="of a document, after the image checks")
    max_images: int | None = Field(None, ge=0)
    stop_words: str | None = Field(None, description="file that replaces the English list")
    common_words: str | None = Field(None, description="file")
    flagged_words: str | None = Field(None, description="file")
    spam_words: str | None = Field(None, description="file")
    images: ImageLimits = Field(ImageLimits(), description="keys set here override the recipe's own")
