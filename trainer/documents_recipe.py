"""The toy recipe for a folder of real documents: the same four stages over whatever sources it has."""

from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest

# What each stage reads, by kind of source; a stage whose kinds the folder lacks reads what there is.
STAGE_KINDS = {
    "align": ("captions",),
    "pretrain": ("html", "warc", "interleaved", "pdf", "captions"),
    "instruct": ("questions", "captions"),
    "adapt": ("questions",),
}
# Documents have more to read and fewer questions than the scenes.
STEPS = {"align": 100, "pretrain": 300, "instruct": 120, "adapt": 60}


def documents_recipe(
    page: dict[str, Any], documents: Manifest, scenes: Manifest | None, scenes_weight: float
) -> dict[str, Any]:
    """`page` (the tiny recipe) over the sources of `documents`, with longer rows.

    With `scenes`, their sources keep the share `scenes_weight` of each stage.
    Raises DataError where the documents give no training sample.
    """
    available = documents.sources()
    kinds = {s["name"]: s["kind"] for s in documents.recipe["sources"] if available.get(s["name"])}
    if not kinds:
        raise DataError("the documents give no training sample: nothing to train on.")
    stages = []
    for stage in page["stages"]:
        wanted = [n for n, kind in kinds.items() if kind in STAGE_KINDS[stage["name"]]] or list(kinds)
        mixture = {n: (1 - scenes_weight) / len(wanted) for n in wanted if scenes_weight < 1}
        if scenes is not None:
            total = sum(stage["mixture"].values())
            mixture |= {n: scenes_weight * w / total for n, w in stage["mixture"].items()}
        stages.append({**stage, "mixture": mixture, "steps": STEPS[stage["name"]]})
    language = {**page["backbones"]["language"], "vocabulary": 1024, "steps": 300}
    return {
        **page,
        "name": "documents",
        "data": {"datasets": ["data"] + (["scenes"] if scenes is not None else [])},
        "backbones": {**page["backbones"], "language": language},
        "defaults": {**page["defaults"], "sequence_length": 384, "global_batch": 8, "micro_batch": 4},
        "stages": stages,
        "evaluation": {"captions": 100, "questions": 100, "documents": 100},
    }
