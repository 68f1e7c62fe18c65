"""Which language a text is in, from a model that comes inside the package py3langid: nothing is fetched.

The model is arrays without pickled objects. Its probabilities are flatter than those of fastText on short
texts, so published thresholds are a little stricter here.
"""

from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

PREFIX = 600  # characters that are looked at: more cost time and hardly change the answer


def language(text: str) -> tuple[str, float]:
    """ISO 639-1 code and probability (0 to 1) of a text's language, judged by its beginning."""
    code, probability = _identifier().classify(text[:PREFIX])
    return str(code), float(probability)


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
