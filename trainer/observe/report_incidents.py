"""The report's viewer of bad steps: what was bad, what was done, and the samples, with pictures and text.
And what befell ranks and checkpoints."""

from pathlib import Path
from typing import Any

from trainer.observe import wording
from trainer.observe.report_parts import mapping
from trainer.observe.report_scores import IMAGE
from trainer.observe.run_record import RunRecord
from trainer.observe.stage_files import read_lines

MOST_INCIDENTS = 12
MOST_SAMPLES = 12
MOST_EVENTS = 30


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


def events(record: RunRecord) -> dict[str, Any]:
    """The last ones of all stages but bad steps, newest first: (stage, step, what); how many there are."""
    found = [
        (wording.finite(line.get("time")) or 0.0, stage.name, wording.number(line.get("step")), _told(line))
        for stage in record.stages
        for line in read_lines(record.directory / stage.name / "events.jsonl", 1 << 20)
        if line.get("event") != "bad step"
    ]
    found.sort(key=lambda event: -event[0])
    return {"total": len(found), "shown": [event[1:] for event in found[:MOST_EVENTS]]}


def _told(line: dict[str, Any]) -> str:
    """In words; of a slow rank with its own seconds a step beside those of the others."""
    who = f"rank {wording.number(line.get('rank'))} on {line.get('host') or 'an unknown host'}"
    at = " ".join(str(line[key]) for key in ("phase", "module") if line.get(key))
    match line.get("event"):
        case "straggler":
            own, others = (wording.number(line.get(key)) for key in ("own_s", "others_s"))
            return f"{who} was slow: {own} s a step of its own, the others {others} s; in {line.get('cause')}"
        case "hang":
            return f"{who} stood still in {at}"
        case "death":
            return f"{who} was ended by {line.get('signal')} in {at}"
        case event:
            lost = line.get("steps_lost")
            again = f" ({wording.number(lost)} steps were trained again)" if lost else ""
            return f"{event or 'an event'}: {line.get('reason') or wording.MISSING}{again}"
