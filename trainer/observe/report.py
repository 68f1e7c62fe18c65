"""One HTML page about a run, made from its directory alone; open it anywhere, send it to anyone.

The page needs no network and no script: styles, charts and images are inside it, and its own content policy
forbids everything else. Model answers are untrusted text; every value is escaped by the template.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from data_pipeline.manifest import Manifest, commit
from trainer.observe import wording
from trainer.observe.report_curves import benchmark_curves, incomplete_tasks, latest_scores
from trainer.observe.report_incidents import events, incidents
from trainer.observe.report_parts import fixed, last, mapping, total
from trainer.observe.report_scores import examples, question_types, score_charts, score_row
from trainer.observe.report_training import (
    course_charts,
    goodput_bars,
    loss_charts,
    series_charts,
    stage_row,
)
from trainer.observe.run_record import Evaluated, RunRecord, read_run
from trainer.observe.wording import finite

_FACTS = {"created": "created", "seed": "seed", "world_size": "ranks:", "zero_stage": "ZeRO stage"}


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
        stages=[stage_row(s, i) for i, s in enumerate(record.stages)],
        loss_charts=loss_charts(record.stages),
        course_charts=course_charts(record.stages),
        source_charts=series_charts(record.stages, "loss/", "Loss by source"),
        norm_charts=series_charts(record.stages, "grad_norm/", "Gradient norm by module"),
        update_charts=series_charts(record.stages, "update_norm/", "Update norm by module"),
        goodput=goodput_bars(record.stages),
        incidents=incidents(record),
        events=events(record),
        scores=[score_row(e) for e in evaluations],
        score_charts=score_charts(record.stages),
        curves=benchmark_curves(record.stages),
        incomplete=incomplete_tasks(record.stages),
        examples=examples(evaluations),
        question_types=question_types(evaluations),
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
    vqa, captions = last(evaluations, "vqa"), last(evaluations, "captions")
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
                fixed(captions.get("CIDEr")),
                f"{fixed(captions.get('CIDEr_blind'))} with another image",
            )
        )
    cards += [_Card(*score) for score in latest_scores(record.stages)]
    if not cards:
        cards.append(_Card("Scores", wording.MISSING, "no evaluation yet"))
    tokens = wording.compact(total(steps, "tokens")) if steps else wording.MISSING
    cards.append(_Card("Tokens trained on", tokens, f"{wording.compact(total(steps, 'images'))} images"))
    training = wording.duration(total(steps, "step_s")) if steps else wording.MISSING
    course = f"{len(steps):,} steps in {begun} stage{'s' * (begun != 1)}"
    if finite(record.summary.get("wall_s")) is not None:
        wall = wording.duration(record.summary["wall_s"])
        cards.append(_Card("Wall time", wall, f"{training} of it in {course}"))
    else:
        cards.append(_Card("Time in training steps", training, course))
    return cards


def _model(recipe: dict[str, Any]) -> list[str]:
    """What is trained, in phrases, as far as the recipe says it."""
    model, backbones = mapping(recipe.get("model")), mapping(recipe.get("backbones"))
    vision, language = mapping(backbones.get("vision")), mapping(backbones.get("language"))
    image, connector = mapping(model.get("image")), mapping(model.get("connector"))
    phrases = [f"{str(model['architecture']).capitalize()} model"] if "architecture" in model else []
    for name, part in (("vision tower", vision), ("language model", language)):
        if "width" in part and "layers" in part:
            phrases.append(f"{name} of {part['layers']} layers, {part['width']} wide")
    if "kind" in connector:
        phrases.append(f"{str(connector['kind']).replace('_', ' ')} connector")
    if "side" in image:
        phrases.append(f"images of up to {image['side']} pixels a side")
    return phrases


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
