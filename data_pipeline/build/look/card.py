"""The data card: README of the dataset in the form of the Hugging Face Hub, from manifest and counts."""

from pathlib import Path
from typing import Any

import jinja2
import yaml

from data_pipeline.build.look import wording
from data_pipeline.build.look.distributions import Distributions
from data_pipeline.manifest import SPLITS, Manifest

# Identifiers of the Hub, by the names that recipes use in lower case. What is not here becomes `other`.
_LICENCES = {
    **{f"cc-by-{v}": f"cc-by-{v}" for v in ("2.0", "2.5", "3.0", "4.0")},
    **{f"cc-by-sa-{v}": f"cc-by-sa-{v}" for v in ("3.0", "4.0")},
    **{f"cc-by-nc-{v}": f"cc-by-nc-{v}" for v in ("2.0", "3.0", "4.0")},
    **{f"cc-by-nc-sa-{v}": f"cc-by-nc-sa-{v}" for v in ("2.0", "3.0", "4.0")},
    **{f"cc-by-nc-nd-{v}": f"cc-by-nc-nd-{v}" for v in ("3.0", "4.0")},
    "cc-by-nd-4.0": "cc-by-nd-4.0",
    "cc0": "cc0-1.0",
    "cc0-1.0": "cc0-1.0",
    "apache-2.0": "apache-2.0",
    "mit": "mit",
    "odc-by": "odc-by",
    "odc-by-1.0": "odc-by",
    "odbl": "odbl",
    "odbl-1.0": "odbl",
    "pddl": "pddl",
}
_TASKS = {
    "caption": ("image-to-text",),
    "instruct": ("visual-question-answering", "image-text-to-text"),
    "interleaved": ("image-text-to-text",),
    "pdf": ("image-text-to-text",),
    "video": ("video-text-to-text",),
    "text": ("text-generation",),
}
_SIZES = ((10**3, "1K"), (10**4, "10K"), (10**5, "100K"), (10**6, "1M"), (10**7, "10M"), (10**8, "100M"),
          (10**9, "1B"), (10**10, "10B"), (10**11, "100B"), (10**12, "1T"))  # fmt: skip
_PERSONAL = ("pii", "personal")
_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>|#"})


def card(manifest: Manifest, found: dict[str, Any], facts: Distributions) -> str:
    """Markdown with YAML front matter. `found` is the funnel; `facts` say kinds, languages and licences."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown; what others wrote passes `plain`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=wording.count, percent=wording.percent, plain=_plain, code=_code)
    samples = {split: _samples(manifest, split) for split in SPLITS}
    recipe = wording.recipe_yaml(manifest.recipe)
    return environment.get_template("card.md.j2").render(
        front=yaml.safe_dump(front_matter(manifest, found, facts), sort_keys=False, allow_unicode=True),
        manifest=manifest,
        funnel=found,
        facts=facts,
        splits={split: n for split, n in samples.items() if n},
        stored=wording.size(sum(s.nbytes for s in manifest.shards())),
        formats=sorted({s.format for s in manifest.shards()}),
        recipe=recipe,
        fence="`" * (1 + max((len(run) for run in _runs(recipe, "`")), default=2)),
        personal=_personal(manifest, found),
    )


def front_matter(manifest: Manifest, found: dict[str, Any], facts: Distributions) -> dict[str, Any]:
    """The metadata block of the Hub: licence, languages, tasks, size."""
    licences = _licences(manifest, facts)
    known = [_LICENCES.get(name.lower()) for name in licences]
    page: dict[str, Any] = {"pretty_name": manifest.name}
    if licences and all(known):
        page["license"] = known[0] if len(set(known)) == 1 else sorted(set(filter(None, known)))
    else:
        page |= {"license": "other", "license_name": "see-sources"}
    if languages := sorted(b.label for b in facts.languages if 2 <= len(b.label) <= 3):
        page["language"] = languages
    tasks = dict.fromkeys(t for b in facts.kinds for t in _TASKS[b.label])
    page["task_categories"] = sorted(tasks)
    page["size_categories"] = [size_category(found["total"]["seen"]["samples"])]
    if facts.generators:
        page["tags"] = ["synthetic"]
    return page


def size_category(n: int) -> str:
    """The Hub's word for a number of samples."""
    below = "n<1K"
    for (edge, name), upper in zip(_SIZES, [*(name for _, name in _SIZES[1:]), None], strict=True):
        if n >= edge:
            below = f"{name}<n<{upper}" if upper else "n>1T"
    return below


def _licences(manifest: Manifest, facts: Distributions) -> list[str]:
    """All that are stated, by the recipe for a source or by its samples for themselves."""
    stated = {bar.label for bars in facts.licences.values() for bar in bars}
    stated |= {licence for name, licence in manifest.licences.items() if not facts.licences.get(name)}
    return sorted(stated)


def _samples(manifest: Manifest, split: str) -> int:
    stored = sum(s.samples for s in manifest.shards(format="arrow", split=split))
    return stored - sum(manifest.excluded(name, split, "samples") for name in manifest.funnel)


def _personal(manifest: Manifest, found: dict[str, Any]) -> list[str]:
    """The steps that have to do with personal data, by their names and the recipe's keys."""
    steps = [s["step"] for s in found["total"]["steps"]]
    named = [s for s in steps if any(word in s.lower() for word in (*_PERSONAL, "withdraw", "opt-out"))]
    return named + [k for k in _keys(manifest.recipe) if any(word in k.lower() for word in _PERSONAL)]


def _keys(value: Any) -> list[str]:
    """The keys of a recipe, of all depths, that are set."""
    if isinstance(value, dict):
        return [k for key, v in value.items() if v not in (None, False, [], {}) for k in (key, *_keys(v))]
    return [k for v in value for k in _keys(v)] if isinstance(value, list | tuple) else []


def _plain(text: Any) -> str:
    """One line in which nothing is Markdown or HTML."""
    return " ".join(str(text).split()).translate(_MARKDOWN)


def _code(text: Any) -> str:
    return "`" + " ".join(str(text).split()).replace("`", "'") + "`"


def _runs(text: str, mark: str) -> list[str]:
    return [run for run in "".join(c if c == mark else " " for c in text).split() if len(run) > 2]
