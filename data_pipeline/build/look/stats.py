"""What a dataset holds and what was left out, from its manifest alone: no pixel is read."""

from collections.abc import Sequence
from typing import Any

from data_pipeline.build.score.threshold import Yield
from data_pipeline.manifest import SPLITS, Manifest


def stats(manifest: Manifest) -> dict[str, Any]:
    """Per source: samples by split, images and characters as a reader sees them, and the funnel.

    `stored` counts what lies in the shards, `excluded` what each later step hides of it.
    """
    sources: dict[str, dict[str, Any]] = {}
    for name, funnel in sorted(manifest.funnel.items()):
        arrow = manifest.shards(format="arrow", source=name)
        stored = {k: sum(getattr(s, k) for s in arrow) for k in ("samples", "images", "text_chars")}
        seen = {k: n - sum(manifest.excluded(name, split, k) for split in SPLITS) for k, n in stored.items()}
        splits = {
            split: sum(s.samples for s in arrow if s.split == split)
            - manifest.excluded(name, split, "samples")
            for split in SPLITS
        }
        sources[name] = {
            **splits,
            "images": seen["images"],
            "images_per_sample": round(seen["images"] / seen["samples"], 3) if seen["samples"] else 0.0,
            "text_chars": seen["text_chars"],
            "nbytes": sum(s.nbytes for s in arrow),
            "licence": manifest.licences.get(name, "not stated"),
            "funnel": {"read": funnel.read, "written": funnel.written, "dropped": funnel.dropped},
            "images_funnel": {
                "read": funnel.images_read,
                "written": funnel.images_written,
                "dropped": funnel.images_dropped,
            },
            "stored": stored,
            "excluded": {e.step: e.reasons[name] for e in manifest.exclusions if name in e.reasons},
        }
    return {
        "name": manifest.name,
        "digest": manifest.digest,
        "sources": sources,
        "bad_inputs": [b for t in manifest.tasks for b in t.bad_inputs],
        "unread": list(manifest.unread),
    }


def table(found: dict[str, Any]) -> list[str]:
    """The same as lines of text."""
    head = ("source", "train", "held out", "images", "img/sample", "characters", "MB", "dropped", "excluded")
    rows: list[tuple[str, ...]] = [head]
    keys = ("train", "heldout", "images", "text_chars", "nbytes")
    total: dict[str, float] = dict.fromkeys((*keys, "dropped", "excluded"), 0)
    for name, s in found["sources"].items():
        dropped = sum(s["funnel"]["dropped"].values())
        excluded = s["stored"]["samples"] - s["train"] - s["heldout"]
        rows.append(_row(name, s, dropped, excluded))
        for k in keys:
            total[k] += s[k]
        total["dropped"] += dropped
        total["excluded"] += excluded
    samples = total["train"] + total["heldout"]
    total["images_per_sample"] = total["images"] / samples if samples else 0
    rows.append(_row("all", total, total["dropped"], total["excluded"]))
    widths = [max(len(r[i]) for r in rows) for i in range(len(head))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells))
    for name, s in found["sources"].items():
        for reason, n in s["funnel"]["dropped"].items():
            lines.append(f"  {name}: {n} dropped: {reason}")
        for reason, n in s["images_funnel"]["dropped"].items():
            lines.append(f"  {name}: {n} images dropped: {reason}")
        for step, reasons in s["excluded"].items():
            for unit, counts in sorted(reasons.items(), reverse=True):
                lines += [
                    f"  {name}: {n} {unit} excluded by {step}: {reason}" for reason, n in counts.items()
                ]
    if unread := found["unread"]:
        shown = ", ".join(unread[:5]) + (" ..." if len(unread) > 5 else "")
        lines.append(f"  {len(unread)} file(s) that nothing reads: {shown}")
    return lines


def curve(name: str, yields: Sequence[Yield]) -> list[str]:
    """Yield against threshold as lines of text; `yields` are those of `score.threshold.yield_curve`."""
    if not yields:
        return [f"{name}: no sample that is shown has this score"]
    rows = [(f"{name} >=", "samples", "kept", "images", "characters")]
    for y in yields:
        share = y.samples / yields[0].samples if yields[0].samples else 0.0
        rows.append(
            (f"{y.threshold:.4g}", f"{y.samples:,}", f"{share:.1%}", f"{y.images:,}", f"{y.text_chars:,}")
        )
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]


def _row(name: str, s: dict[str, Any], dropped: float, excluded: float) -> tuple[str, ...]:
    return (
        name,
        f"{s['train']:,}",
        f"{s['heldout']:,}",
        f"{s['images']:,}",
        f"{s['images_per_sample']:.2f}",
        f"{s['text_chars']:,}",
        f"{s['nbytes'] / 1e6:.1f}",
        f"{dropped:,}",
        f"{excluded:,}",
    )
