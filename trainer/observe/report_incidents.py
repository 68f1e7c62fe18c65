"""The report's viewer of bad steps: what was bad, what was done, and the samples, with pictures and text."""

from pathlib import Path
from typing import Any

from trainer.observe import wording
from trainer.observe.report_parts import mapping
from trainer.observe.report_scores import IMAGE
from trainer.observe.run_record import RunRecord

MOST_INCIDENTS = 12
MOST_SAMPLES = 12


def incidents(record: RunRecord) -> dict[str, Any]:
    """The last ones of all stages, newest first; how many there are of them."""
    found = [(stage.name, about) for stage in record.stages for about in stage.incidents]
    found.sort(key=lambda pair: -(wording.finite(pair[1].get("time")) or 0.0))
    return {
        "total": len(found),
        "shown": [_incident(record.directory, stage, about) for stage, about in found[:MOST_INCIDENTS]],
    }


def _incident(run: Path, stage: str, about: dict[str, Any]) -> dict[str, Any]:
    listed = about.get("samples")
    samples = [s for s in listed if isinstance(s, dict)] if isinstance(listed, list) else []
    step = about.get("step")
    rows = f"{stage}/incidents/step_{step:06d}/rows.html" if isinstance(step, int) else ""
    norms = mapping(about.get("grad_norm_by_module"))
    return {
        "stage": stage,
        "step": wording.number(step),
        "reason": str(about.get("reason") or wording.MISSING),
        "action": str(about.get("action") or wording.MISSING),
        "loss": _shown(about.get("loss")),
        "norms": [(str(module), _shown(norm)) for module, norm in norms.items()],
        "rows": rows if rows and (run / rows).is_file() else "",
        "samples": [_sample(s) for s in samples[:MOST_SAMPLES]],
        "total": len(samples),
    }


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    pictures = sample.get("thumbnails")
    return {
        "id": str(sample.get("id") or "(unreadable)"),
        "source": str(sample.get("source") or wording.MISSING),
        "rank": wording.number(sample.get("rank")),
        "tokens": wording.number(sample.get("tokens")),
        "url": str(sample.get("url") or ""),
        "text": str(sample.get("text") or ""),
        "pictures": [
            p
            for p in (pictures if isinstance(pictures, list) else [])
            if isinstance(p, str) and IMAGE.fullmatch(p)
        ],
    }


def _shown(value: Any) -> str:
    """A number, or the word that stands for one: nan, inf."""
    return value if isinstance(value, str) else wording.number(value)
