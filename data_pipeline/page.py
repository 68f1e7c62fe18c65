"""YAML pages read into strict pydantic models: every fault at once, with line and nearest valid name."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from data_pipeline.errors import ConfigError, nearest

M = TypeVar("M", bound=BaseModel)


def find_page(path: str | Path, shipped_in: Path) -> Path:
    """`path` itself, or the page of that name that ships. Raises ConfigError where there is neither."""
    file = Path(path)
    if file.is_file():
        return file
    shipped = {p.stem: p for p in sorted(shipped_in.glob("*.yaml"))}
    if str(path) in shipped:
        return shipped[str(path)]
    raise ConfigError(
        f"no recipe at {path}{nearest(file.stem, shipped)}\n"
        f"  A recipe is a YAML file, or the name of one that ships: {', '.join(shipped)}"
    )


def load_page(
    file: Path, model: type[M], prepare: Callable[[dict[str, Any]], dict[str, Any]] = lambda page: page
) -> M:
    """The page as a `model`, after `prepare` (defaults, overrides). Raises ConfigError with every fault."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise ConfigError(f"{file}: no text in UTF-8 ({e.reason} at byte {e.start}), so no recipe") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        page = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ConfigError(f"{file}: not YAML: {e}") from None
    if not isinstance(page, dict):
        raise ConfigError(f"{file}: a recipe is a mapping of keys, this page holds none")
    try:
        return model.model_validate(prepare(page))
    except ValidationError as e:
        raise ConfigError(_explain(e, model, file, node)) from None


def apply_overrides(page: dict[str, Any], overrides: list[str]) -> None:
    """Set `key=value` on the page. Sections nest with dots; items of a list are addressed by their `name`."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override '{override}': expected key=value, for instance seed=1")
        *parents, last = key.split(".")
        node: Any = page
        for i, part in enumerate(parents):
            if isinstance(node, list):
                names = [str(s.get("name")) for s in node if isinstance(s, dict)]
                if part not in names:
                    what = parents[i - 1].removesuffix("s")
                    raise ConfigError(f"override '{override}': no {what} '{part}'{nearest(part, names)}")
                node = next(s for s in node if isinstance(s, dict) and str(s.get("name")) == part)
            else:
                node = node.setdefault(part, {})
            if not isinstance(node, dict | list):
                raise ConfigError(f"override '{override}': '{part}' is a value, not a section")
        if isinstance(node, list):
            raise ConfigError(f"override '{override}': name a key of '{parents[-1]}.{last}'")
        node[last] = yaml.safe_load(value)


def _explain(error: ValidationError, model: type[BaseModel], file: Path, node: yaml.Node | None) -> str:
    """All faults of a page, one a line: file:line, path, what was expected, nearest valid name."""
    # A key under `defaults:` is merged into every stage: say its fault once, at the line it stands on.
    found: dict[tuple[int | None, str], str] = {}
    faults = error.errors()
    for e in faults:
        if e["type"] == "too_short" and any(
            f["loc"][: len(e["loc"])] == e["loc"] for f in faults if f is not e
        ):
            continue  # pydantic counts only the items without a fault; theirs are reported already
        loc = tuple(p for p in e["loc"] if not (isinstance(p, str) and p in _UNION_TAGS))
        line, shown = _locate(node, loc)
        if e["type"] == "extra_forbidden":
            allowed = _fields_at(model, loc[:-1])
            what = f"unknown key '{loc[-1]}'{nearest(str(loc[-1]), allowed)}"
            if not difflib.get_close_matches(str(loc[-1]), allowed, n=1, cutoff=0.5):
                what += f" (allowed: {', '.join(sorted(allowed))})"
        elif e["type"] == "missing":
            what = f"'{loc[-1]}' is missing"
        else:
            got = "" if isinstance(e["input"], dict | list) else f" (got {e['input']!r})"
            what = f"{e['msg'].removeprefix('Value error, ')}{got}"
        found[(line, what)] = f"  {file}:{line or 1}: {shown or 'recipe'}: {what}"
    lines = list(found.values())
    return f"{len(lines)} error{'s' if len(lines) > 1 else ''} in the recipe:\n" + "\n".join(lines)


# pydantic puts the tag of a union into the path of an error; on the page there is no such key.
_UNION_TAGS = (
    *("pixel_shuffle", "mlp", "perceiver"),
    *("html", "warc", "interleaved", "captions", "questions", "pdf", "synthetic", "scenes"),
)


def _fields_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Valid keys of the model that stands at `loc`, walking fields, tuples and unions of models."""
    models: list[type[BaseModel]] = [model]
    for part in loc:
        if isinstance(part, int):
            continue
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        if fields:  # else a key that the user chose, such as the name of a source
            models = [inner for field in fields for inner in _models_in(field.annotation)]
    return sorted({name for m in models for name in m.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in getattr(annotation, "__args__", ()) for m in _models_in(a)]


def _locate(node: yaml.Node | None, loc: tuple[Any, ...]) -> tuple[int | None, str]:
    """The line where `loc` stands on the page, as deep as it goes, and the path as a user would write it."""
    shown: list[str] = []
    line = None
    root = node
    for i, part in enumerate(loc):
        child = _child(node, part)
        if child is None and i == 2 and loc[0] == "stages":
            defaults = _child(root, "defaults")
            child = _child(defaults[1], part) if defaults else None
        if child is not None:
            key, node = child
            line = key.start_mark.line + 1
        else:
            node = None
        name = _child(node, "name") if isinstance(part, int) else None
        shown.append(name[1].value if name and isinstance(name[1], yaml.ScalarNode) else str(part))
    return line, ".".join(shown)


def _child(node: yaml.Node | None, part: Any) -> tuple[yaml.Node, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None
