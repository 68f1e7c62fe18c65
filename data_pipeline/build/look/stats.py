"""What a dataset holds and what was left out, from its manifest alone: no pixel is read."""

from typing import Any

from data_pipeline.manifest import Manifest


def stats(manifest: Manifest) -> dict[str, Any]:
    """Per source: samples by split, images, characters, bytes, and the funnel."""
    sources: dict[str, dict[str, Any]] = {}
    for name, funnel in sorted(manifest.funnel.items()):
        arrow = manifest.shards(format="arrow", source=name)
        samples = sum(s.samples for s in arrow)
        images = sum(s.images for s in arrow)
        sources[name] = {
            "train": sum(s.samples for s in arrow if s.split == "train"),
            "heldout": sum(s.samples for s in arrow if s.split == "heldout"),
            "images": images,
            "images_per_sample": round(images / samples, 3) if samples else 0.0,
            "text_chars": sum(s.text_chars for s in arrow),
            "nbytes": sum(s.nbytes for s in arrow),
            "licence": manifest.licences.get(name, "not stated"),
            "funnel": {"read": funnel.read, "written": funnel.written, "dropped": funnel.dropped},
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
    head = ("source", "train", "held out", "images", "img/sample", "characters", "MB", "dropped")
    rows = [head]
    keys = ("train", "heldout", "images", "text_chars", "nbytes")
    total = dict.fromkeys((*keys, "dropped"), 0)
    for name, s in found["sources"].items():
        dropped = sum(s["funnel"]["dropped"].values())
        rows.append(_row(name, s, dropped))
        for k in keys:
            total[k] += s[k]
        total["dropped"] += dropped
    samples = total["train"] + total["heldout"]
    total["images_per_sample"] = total["images"] / samples if samples else 0
    rows.append(_row("all", total, total["dropped"]))
    widths = [max(len(r[i]) for r in rows) for i in range(len(head))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells))
    for name, s in found["sources"].items():
        for reason, n in s["funnel"]["dropped"].items():
            lines.append(f"  {name}: {n} dropped: {reason}")
    if unread := found["unread"]:
        shown = ", ".join(unread[:5]) + (" ..." if len(unread) > 5 else "")
        lines.append(f"  {len(unread)} file(s) that nothing reads: {shown}")
    return lines


def _row(name: str, s: dict[str, Any], dropped: int) -> tuple[str, ...]:
    return (
        name,
        f"{s['train']:,}",
        f"{s['heldout']:,}",
        f"{s['images']:,}",
        f"{s['images_per_sample']:.2f}",
        f"{s['text_chars']:,}",
        f"{s['nbytes'] / 1e6:.1f}",
        f"{dropped:,}",
    )
