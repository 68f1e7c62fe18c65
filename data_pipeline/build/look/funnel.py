"""What came in and where it went, step by step, from the manifest alone; and the proof that it adds up.

A step's `in` is what the step before let out. Cutting makes several samples of a document: those are `added`.
After the steps of the build stand those that excluded something from the built dataset.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from data_pipeline.build.cut import CutDocuments
from data_pipeline.errors import printable
from data_pipeline.manifest import Exclusions, Funnel, Manifest, StepCount, add_counts

UNITS = ("samples", "images")
WITH_SAMPLE = "went with its sample"


def funnel(manifest: Manifest) -> dict[str, Any]:
    """{"name", "digest", "sources": {source: ledger}, "total": ledger}, to be written as JSON.

    A ledger: `read`, `written`, `seen` ({"samples", "images"}: what was read, what lies in the shards, what
    a reader sees of it), `dropped` (reasons of samples and of images) and `steps`, in order: {"step",
    "stage": "build" or "exclusion", "samples" and "images": {"in", "added", "out", "dropped": {reason: n}},
    "text_chars": {"in", "out"}}. Tokens are not counted: they depend on the tokenizer of the training.
    """
    funnels = manifest.funnel
    return {
        "name": manifest.name,
        "digest": manifest.digest,
        "sources": {
            name: _ledger(counts, manifest.exclusions, [name]) for name, counts in sorted(funnels.items())
        },
        "total": _ledger(sum(funnels.values(), Funnel()), manifest.exclusions, list(funnels)),
    }


def balanced(found: dict[str, Any]) -> list[str]:
    """What does not add up; empty for a sound dataset. `found` is what `funnel` returned.

    At every step, for samples and for images: in + added = out + dropped by reason; the first step takes in
    what was read, the last one lets out what was written, and the total is the sum of the sources.
    """
    faults = []
    for name, ledger in [*found["sources"].items(), ("all", found["total"])]:
        for unit in UNITS:
            faults += [f"{name}, {unit}: {fault}" for fault in _imbalances(ledger, unit)]
    for unit in UNITS:
        for what in ("read", "written", "seen"):
            parts = sum(ledger[what][unit] for ledger in found["sources"].values())
            if parts != (whole := found["total"][what][unit]):
                faults.append(f"all, {unit}: {whole} {what}, the sources have {parts}")
    return faults


def table(found: dict[str, Any]) -> list[str]:
    """The funnel of all sources, then of each where there are several, as aligned lines of plain text."""
    blocks = [("all sources" if len(found["sources"]) > 1 else next(iter(found["sources"]), "all"), "total")]
    lines = _block(blocks[0][0], found["total"])
    if len(found["sources"]) > 1:
        for name, ledger in found["sources"].items():
            lines += ["", *_block(name, ledger)]
    return lines


def kept(step: dict[str, Any], unit: str) -> float | None:
    """The share of what came into a step (or was made in it) that left it; None where nothing came."""
    counts = step[unit]
    came = counts["in"] + counts["added"]
    return counts["out"] / came if came else None


def _ledger(counts: Funnel, exclusions: Iterable[Exclusions], sources: list[str]) -> dict[str, Any]:
    written = {"samples": counts.written, "images": counts.images_written}
    steps = list(_build_steps(counts))
    before = {**written, "text_chars": steps[-1]["text_chars"]["out"]}
    for record in exclusions:
        steps.append(step := _exclusion_step(record, sources, before))
        before = {what: step[what]["out"] for what in before}
    return {
        "read": {"samples": counts.read, "images": counts.images_read},
        "written": written,
        "seen": {unit: before[unit] for unit in UNITS},
        "dropped": {"samples": counts.dropped, "images": counts.images_dropped},
        "steps": steps,
    }


def _build_steps(counts: Funnel) -> Iterator[dict[str, Any]]:
    steps = counts.steps or (
        StepCount(
            step="build",
            samples=counts.written,
            images=counts.images_written,
            dropped=counts.dropped,
            images_dropped=counts.images_dropped,
        ),
    )
    added = _added(steps)
    before = {"samples": counts.read - added["samples"], "images": counts.images_read - added["images"]}
    chars = None
    for step in steps:
        more = added if step.step == CutDocuments.name else dict.fromkeys(UNITS, 0)
        yield {
            "step": step.step,
            "stage": "build",
            "samples": {
                "in": before["samples"],
                "added": more["samples"],
                "out": step.samples,
                "dropped": dict(step.dropped),
            },
            "images": {
                "in": before["images"],
                "added": more["images"],
                "out": step.images,
                "dropped": dict(step.images_dropped),
            },
            "text_chars": {"in": chars, "out": step.text_chars},
        }
        before, chars = {"samples": step.samples, "images": step.images}, step.text_chars


def _added(steps: tuple[StepCount, ...]) -> dict[str, int]:
    """How many more samples and images there were after documents were cut into samples."""
    for before, step in itertools.pairwise(steps):
        if step.step == CutDocuments.name:
            return {
                "samples": step.samples + sum(step.dropped.values()) - before.samples,
                "images": step.images + sum(step.images_dropped.values()) - before.images,
            }
    return dict.fromkeys(UNITS, 0)


def _exclusion_step(record: Exclusions, sources: list[str], before: dict[str, int]) -> dict[str, Any]:
    taken = dict.fromkeys(("samples", "images", "text_chars"), 0)
    reasons: dict[str, dict[str, int]] = {unit: {} for unit in UNITS}
    for source in sources:
        for split in record.counts.get(source, {}).values():
            taken = add_counts(taken, split)
        for unit in UNITS:
            reasons[unit] = add_counts(reasons[unit], record.reasons.get(source, {}).get(unit, {}))
    # The record names the reasons of images that left alone; the others left with their samples.
    if with_sample := taken["images"] - sum(reasons["images"].values()):
        reasons["images"][WITH_SAMPLE] = with_sample
    return {
        "step": record.step,
        "stage": "exclusion",
        **{
            unit: {
                "in": before[unit],
                "added": 0,
                "out": before[unit] - taken[unit],
                "dropped": reasons[unit],
            }
            for unit in UNITS
        },
        "text_chars": {"in": before["text_chars"], "out": before["text_chars"] - taken["text_chars"]},
    }


def _imbalances(ledger: dict[str, Any], unit: str) -> Iterator[str]:
    read, written = ledger["read"][unit], ledger["written"][unit]
    if read != written + (gone := sum(ledger["dropped"][unit].values())):
        yield f"{read} read, but {written} written and {gone} dropped"
    for step in ledger["steps"]:
        counts = step[unit]
        came, gone = counts["in"] + counts["added"], sum(counts["dropped"].values())
        if came != counts["out"] + gone:
            yield f"step '{step['step']}' took in {came}, but let out {counts['out']} and dropped {gone}"
        if min(counts["added"], counts["out"], *counts["dropped"].values(), 0) < 0:
            yield f"step '{step['step']}' has a count below zero: {counts}"
    built = [s for s in ledger["steps"] if s["stage"] == "build"]
    if built[-1][unit]["out"] != written:
        yield f"the last step let out {built[-1][unit]['out']}, but {written} were written"


def _block(title: str, ledger: dict[str, Any]) -> list[str]:
    rows = [(title, "samples", "kept", "images", "kept", "characters")]
    rows.append(("came in", f"{ledger['read']['samples']:,}", "", f"{ledger['read']['images']:,}", "", ""))
    notes: dict[int, list[str]] = {}
    for step in ledger["steps"]:
        rows.append(
            (
                step["step"] if step["stage"] == "build" else f"excluded by {step['step']}",
                f"{step['samples']['out']:,}",
                _percent(kept(step, "samples")),
                f"{step['images']['out']:,}",
                _percent(kept(step, "images")),
                f"{step['text_chars']['out']:,}",
            )
        )
        notes[len(rows) - 1] = [
            f"    {n:,} {unit} dropped: {printable(reason)}"
            for unit in UNITS
            for reason, n in sorted(step[unit]["dropped"].items(), key=lambda r: (-r[1], r[0]))
        ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines += ["  ".join(cells).rstrip(), *notes.get(number, [])]
    return lines


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
