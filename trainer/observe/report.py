"""One HTML page about a run, made from its directory alone; open it anywhere, send it to anyone.

The page needs no network and no script: styles, charts and images are inside it, and its own content policy
forbids everything else. Model answers are untrusted text; every value is escaped by the template.
"""

import re
import shlex
import statistics
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from data_pipeline.manifest import Manifest, commit
from trainer.observe import wording
from trainer.observe.charts import Line, Pair, bar_chart, line_chart
from trainer.observe.run_record import Evaluated, RunRecord, StageRecord, read_run
from trainer.observe.wording import finite

_IMAGE = re.compile(r"data:image/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/=\s]+")
_FACTS = {"created": "created", "seed": "seed", "world_size": "ranks:", "zero_stage": "ZeRO stage"}
MOST_EXAMPLES = 24


def write_report(run_dir: Path, out: Path, dataset: Path | None = None) -> None:
    """Write the page about `run_dir` to `out`; a partial run makes a page that says what is missing."""
    record = read_run(Path(run_dir), dataset)
    with commit(Path(out)) as f:
        f.write(render(record).encode())


def render(record: RunRecord) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        number=wording.number,
        compact=wording.compact,
        percent=wording.percent,
        points=wording.points,
        duration=wording.duration,
    )
    evaluations = [e for s in record.stages for e in s.evaluations]
    return environment.get_template("report.html.j2").render(
        record=record,
        title=str(record.run.get("name") or record.recipe.get("name") or record.directory.name),
        model=_model(record.recipe),
        facts=[f"{label} {record.run[key]}" for key, label in _FACTS.items() if key in record.run],
        cards=_cards(record, evaluations),
        stages=[_stage_row(s, i) for i, s in enumerate(record.stages)],
        loss_charts=_loss_charts(record.stages),
        course_charts=_course_charts(record.stages),
        scores=[_score_row(e) for e in evaluations],
        score_charts=_score_charts(record.stages),
        examples=_examples(evaluations),
        question_types=_question_types(evaluations),
        datasets=[_dataset(m) for m in record.manifests],
        commands=record.commands or _command(record.run.get("command")),
        summary=_summary(record.summary),
    )


# --- headline -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Card:
    label: str
    value: str
    note: str


def _cards(record: RunRecord, evaluations: list[Evaluated]) -> list[_Card]:
    """The numbers to see first, each from the last evaluation that measured it."""
    vqa, captions = _last(evaluations, "vqa"), _last(evaluations, "captions")
    steps = [m for s in record.stages for m in s.steps]
    begun = sum(bool(s.steps) for s in record.stages)
    cards = []
    if vqa:
        cards.append(
            _Card(
                "VQA accuracy",
                wording.percent(vqa.get("accuracy")),
                f"{wording.percent(vqa.get('accuracy_blind'))} with another image",
            )
        )
    if captions:
        cards.append(
            _Card(
                "Captions exactly right",
                wording.percent(captions.get("exact")),
                f"{wording.percent(captions.get('exact_blind'))} with another image",
            )
        )
        cards.append(
            _Card(
                "CIDEr",
                _fixed(captions.get("CIDEr")),
                f"{_fixed(captions.get('CIDEr_blind'))} with another image",
            )
        )
    if not (vqa or captions):
        cards.append(_Card("Scores", wording.MISSING, "no evaluation yet"))
    tokens = wording.compact(_total(steps, "tokens")) if steps else wording.MISSING
    cards.append(_Card("Tokens trained on", tokens, f"{wording.compact(_total(steps, 'images'))} images"))
    training = wording.duration(_total(steps, "step_s")) if steps else wording.MISSING
    course = f"{len(steps):,} steps in {begun} stage{'s' * (begun != 1)}"
    if finite(record.summary.get("wall_s")) is not None:
        wall = wording.duration(record.summary["wall_s"])
        cards.append(_Card("Wall time", wall, f"{training} of it in {course}"))
    else:
        cards.append(_Card("Time in training steps", training, course))
    return cards


def _model(recipe: dict[str, Any]) -> list[str]:
    """What is trained, in phrases, as far as the recipe says it."""
    model, backbones = _dict(recipe.get("model")), _dict(recipe.get("backbones"))
    vision, language = _dict(backbones.get("vision")), _dict(backbones.get("language"))
    image, connector = _dict(model.get("image")), _dict(model.get("connector"))
    phrases = [f"{str(model['architecture']).capitalize()} model"] if "architecture" in model else []
    for name, part in (("vision tower", vision), ("language model", language)):
        if "width" in part and "layers" in part:
            phrases.append(f"{name} of {part['layers']} layers, {part['width']} wide")
    if "kind" in connector:
        phrases.append(f"{str(connector['kind']).replace('_', ' ')} connector")
    if "side" in image:
        phrases.append(f"images of up to {image['side']} pixels a side")
    return phrases


def _last(evaluations: list[Evaluated], task: str) -> dict[str, Any]:
    measured = [e.results[task] for e in evaluations if isinstance(e.results.get(task), dict)]
    return measured[-1] if measured else {}


# --- training -------------------------------------------------------------------------------------


def _stage_row(stage: StageRecord, colour: int) -> dict[str, Any]:
    steps = stage.steps
    rates = [v for m in steps if (v := finite(m.get("tokens_per_s"))) is not None]
    losses = [v for m in steps if (v := finite(m.get("loss"))) is not None]
    tail = losses[-max(1, len(losses) // 20) :]
    return {
        "name": stage.name,
        "colour": colour,
        "train": ", ".join(starmap(_trained, _dict(stage.spec.get("train")).items())) or wording.MISSING,
        "mixture": ", ".join(map(str, _dict(stage.spec.get("mixture")))) or wording.MISSING,
        "done": steps[-1]["step"] if steps else 0,
        "planned": stage.spec.get("steps"),
        "loss": wording.number(statistics.fmean(tail)) if tail else wording.MISSING,
        "tokens": wording.compact(_total(steps, "tokens")) if steps else wording.MISSING,
        "images": wording.compact(_total(steps, "images")) if steps else wording.MISSING,
        "rate": wording.compact(statistics.median(rates)) if rates else wording.MISSING,
        "time": wording.duration(_total(steps, "step_s")) if steps else wording.MISSING,
    }


def _trained(module: str, how: Any) -> str:
    """A module, with the kind of its adapter where it has one."""
    kind = next((k for k in ("lora", "dora") if k in _dict(how)), None)
    return f"{module} ({kind})" if kind else str(module)


def _loss_charts(stages: list[StageRecord]) -> list[tuple[str, Markup]]:
    charts = []
    for i, stage in enumerate(stages):
        if line := _line(stage, "loss", 0, i):
            charts.append((stage.name, line_chart([line], label=f"Loss of stage {stage.name}, by step")))
    return charts


def _course_charts(stages: list[StageRecord]) -> list[tuple[str, Markup]]:
    """Throughput, gradient norm and learning rate, all stages one after another."""
    charts = []
    for key, title, options in (
        ("tokens_per_s", "Throughput, tokens a second", {"from_zero": True, "log": False}),
        ("grad_norm", "Norm of the gradient", {}),
        ("lr", "Learning rate", {"from_zero": True, "log": False, "smooth": False}),
    ):
        lines, before = [], 0
        for i, stage in enumerate(stages):
            if line := _line(stage, key, before, i):
                lines.append(line)
            before += stage.steps[-1]["step"] if stage.steps else 0
        if lines:
            chart = line_chart(lines, label=f"{title}, by step", x_label="step, all stages", **options)
            charts.append((title, chart))
    return charts


def _line(stage: StageRecord, key: str, before: int, colour: int) -> Line | None:
    if not any(key in m for m in stage.steps):
        return None
    values = [v if (v := finite(m.get(key))) is not None else float("nan") for m in stage.steps]
    return Line(stage.name, [before + m["step"] for m in stage.steps], values, colour)


# --- scores ---------------------------------------------------------------------------------------


def _score_row(e: Evaluated) -> dict[str, Any]:
    captions, vqa, loss = (_dict(e.results.get(k)) for k in ("captions", "vqa", "loss"))
    return {
        "stage": e.stage,
        "step": e.step,
        "vqa": vqa,
        "captions": captions,
        "loss": loss,
        "cider": _fixed(captions.get("CIDEr")),
        "cider_blind": _fixed(captions.get("CIDEr_blind")),
        "right": _fixed(loss.get("right_image"), 3),
        "wrong": _fixed(loss.get("wrong_image"), 3),
    }


def _score_charts(stages: list[StageRecord]) -> list[tuple[str, Markup]]:
    charts = []
    for task, key, title in (
        ("vqa", "accuracy", "VQA accuracy"),
        ("captions", "exact", "Captions exactly right"),
    ):
        pairs = []
        for stage in stages:
            last = _last(stage.evaluations, task)
            if last:
                pairs.append(Pair(stage.name, finite(last.get(key)), finite(last.get(f"{key}_blind"))))
        if pairs:
            charts.append(
                (title, bar_chart(pairs, label=f"{title} after each stage, with and with another image"))
            )
    return charts


def _question_types(evaluations: list[Evaluated]) -> list[dict[str, Any]]:
    vqa = _last(evaluations, "vqa")
    blind = _dict(vqa.get("per_question_type_blind"))
    return [
        {"name": name, "share": finite(share), "blind": finite(blind.get(name))}
        for name, share in sorted(_dict(vqa.get("per_question_type")).items())
    ]


def _examples(evaluations: list[Evaluated]) -> dict[str, Any]:
    """The pictures of the last evaluation that kept any."""
    with_examples = [e for e in evaluations if e.examples]
    if not with_examples:
        return {"stage": None, "step": None, "cards": []}
    last = with_examples[-1]
    return {
        "stage": last.stage,
        "step": last.step,
        "cards": [_example(e) for e in last.examples[:MOST_EXAMPLES]],
    }


def _example(example: dict[str, Any]) -> dict[str, Any]:
    image, truth = example.get("image"), example.get("truth")
    truths = truth if isinstance(truth, list) else [truth]
    return {
        # Only a picture held in the page itself: an address would make the page call out.
        "image": image if isinstance(image, str) and _IMAGE.fullmatch(image) else None,
        "task": {"vqa": "question", "caption": "caption"}.get(str(example.get("task")), "example"),
        "id": example.get("id", ""),
        "prompt": example.get("prompt", ""),
        "answer": str(example.get("answer") or "").strip() or "(nothing)",
        "blind": example.get("blind_answer"),
        # Ten annotators often agree: each answer once.
        "truths": list(dict.fromkeys(str(t) for t in truths if t is not None)),
        "correct": example.get("correct"),
    }


# --- data -----------------------------------------------------------------------------------------


def _dataset(manifest: Manifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "digest": manifest.digest[:12],
        "sources": _funnel(manifest),
        "unread": manifest.unread,
        "bad_inputs": sum(len(t.bad_inputs) for t in manifest.tasks),
    }


def _funnel(manifest: Manifest) -> list[dict[str, Any]]:
    """Per source: what was read, written and dropped, as shares of what was read."""
    rows = []
    for source, funnel in sorted(manifest.funnel.items()):
        read = max(1, funnel.read)
        dropped = sorted(funnel.dropped.items(), key=lambda kv: -kv[1])
        rows.append(
            {
                "source": source,
                "read": funnel.read,
                "written": funnel.written,
                "written_share": funnel.written / read,
                "dropped": [(reason, n, n / read) for reason, n in dropped if n],
                "licence": manifest.licences.get(source, wording.MISSING),
            }
        )
    return rows


def _command(command: Any) -> str:
    """The one command that run.json knows, as a string or as a list of arguments."""
    return shlex.join(map(str, command)) if isinstance(command, list) else str(command or "")


def _summary(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The plain values of summary.json; what is nested in it has its own place on the page."""
    plain = [(k, v) for k, v in summary.items() if isinstance(v, str | int | float)]
    return [(k, wording.number(v, 4) if finite(v) is not None else str(v)) for k, v in plain]


# --- shared ---------------------------------------------------------------------------------------


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _total(steps: list[dict[str, Any]], key: str) -> float:
    return sum(v for m in steps if (v := finite(m.get(key))) is not None)


def _fixed(value: Any, places: int = 2) -> str:
    """Scores stand below one another: as many places for each."""
    v = finite(value)
    return wording.MISSING if v is None else f"{v:.{places}f}"
