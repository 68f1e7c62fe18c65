"""What published datasets kept at their steps, to be read beside ours. Other corpora: a scale, no target.

The figures are those of the papers, and of the authors' own repositories where the paper gives none.
"""

from dataclasses import dataclass
from typing import Any

from data_pipeline.build.look.funnel import kept

OBELICS = "OBELICS (Laurençon et al. 2023, NeurIPS Datasets and Benchmarks, arXiv:2306.16527)"
OBELICS_CODE = "OBELICS, counts noted in the build scripts of github.com/huggingface/OBELICS"
MMC4 = "Multimodal C4 (Zhu et al. 2023, NeurIPS Datasets and Benchmarks, arXiv:2304.06939)"


@dataclass(frozen=True)
class Yield:
    """`share` of `unit` that a step kept.

    Its match among ours is a step with one of `words` in its name (`*`: all steps together), or what any
    step drops for a reason with one of `reasons` in it.
    """

    step: str
    unit: str  # samples (a document there) | images
    share: float
    detail: str
    source: str
    words: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


YIELDS = (
    Yield("English, by language identification", "samples", 1 - 0.636, "63.6 % of documents are not English",
          OBELICS, ("language",)),
    Yield("images that could be downloaded", "images", 0.55, "of 3.6 billion links", OBELICS, ("fetch",)),
    Yield("deduplication by URL", "samples", 1 - 115_871_408 / 361_209_568,
          "361,209,568 documents, less 115,871,408", OBELICS_CODE, reasons=("same address", "same url")),
    Yield("deduplication by set of images", "samples", 1 - 17_708_135 / 158_875_682,
          "158,875,682 documents, less 17,708,135", OBELICS_CODE, reasons=("same images",)),
    Yield("all steps after the crawl", "samples", 101.2 / 115, "115 million documents to 101.2 million", MMC4,
          ("*",)),
    Yield("all steps after the crawl", "images", 571 / 1370, "1.37 billion images to 571 million", MMC4,
          ("*",)),
    Yield("images judged safe", "images", 0.9, "the classifier removes about a tenth", MMC4,
          ("nsfw", "safe")),
    Yield("core subset", "samples", 7.3 / 101.2, "101.2 million documents to 7.3 million", MMC4),
    Yield("core subset", "images", 29.9 / 571, "571 million images to 29.9 million", MMC4),
)  # fmt: skip

IMAGES_PER_DOCUMENT = (("OBELICS", 353 / 141, OBELICS), ("Multimodal C4", 571 / 101.2, MMC4))


def beside(ledger: dict[str, Any]) -> list[dict[str, Any]]:
    """Each published yield with the shares that the matching steps of `ledger` kept: {"yield", "ours"}."""
    return [{"published": y, "ours": _ours(y, ledger)} for y in YIELDS]


def _ours(of: Yield, ledger: dict[str, Any]) -> list[tuple[str, float]]:
    if "*" in of.words:
        read, seen = ledger["read"][of.unit], ledger["seen"][of.unit]
        return [("all steps", seen / read)] if read else []
    found = []
    for step in ledger["steps"]:
        if any(w in step["step"].lower() for w in of.words) and (share := kept(step, of.unit)) is not None:
            found.append((step["step"], share))
        for reason, n in step[of.unit]["dropped"].items():
            if any(w in reason.lower() for w in of.reasons):
                found.append(
                    (f"{step['step']}: {reason}", 1 - n / (step[of.unit]["in"] + step[of.unit]["added"]))
                )
    return found
