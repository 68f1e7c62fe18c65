"""The recipe: one YAML page that says what a run is, read by strict models before torch is imported.

Unknown keys are errors. All errors of a page are reported together, each with its line, its path and the
nearest valid name. `key=value` overrides follow the same rules.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_pipeline.errors import ConfigError, nearest
from data_pipeline.image_spec import Connector, ImageSpec, PixelShuffle

RECIPES = Path(__file__).parent / "recipes"
MODULES = ("vision", "connector", "language", "new_tokens")
"""The parts of a model that a stage freezes or trains."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Part):
    """Where the dataset stands. A relative path counts from the run directory."""

    dataset: str = Field("data", description="directory that holds manifest.json")


class VisionBackbone(_Part):
    """The SigLIP-shaped tower that `fovea backbones` trains on dense patch labels."""

    width: int = Field(128, ge=8)
    layers: int = Field(3, ge=1)
    heads: int = Field(4, ge=1)
    steps: int = Field(1000, ge=0)
    batch: int = Field(32, ge=1, description="images a step")
    lr: float = Field(1e-3, gt=0)


class LanguageBackbone(_Part):
    """The Mistral-shaped language model that `fovea backbones` trains on the text of the dataset."""

    width: int = Field(192, ge=8)
    layers: int = Field(4, ge=1)
    heads: int = Field(6, ge=1)
    kv_heads: int = Field(2, ge=1)
    vocabulary: int = Field(512, ge=300, description="entries of the byte-level tokenizer")
    max_positions: int = Field(2048, ge=16)
    steps: int = Field(300, ge=0)
    batch: int = Field(16, ge=1, description="rows a step")
    sequence_length: int = Field(128, ge=16)
    lr: float = Field(2e-3, gt=0)


class Backbones(_Part):
    """Directories of transformers format: vision/, language/, tokenizer/.

    A relative `path` counts from the run directory. `vision` and `language` say how `fovea backbones`
    makes them; they are not read where the directories come from elsewhere.
    """

    path: str = "backbones"
    vision: VisionBackbone = VisionBackbone()
    language: LanguageBackbone = LanguageBackbone()


class Model(_Part):
    """Autoregressive: tower -> connector -> spliced into the token sequence of the language model."""

    architecture: Literal["autoregressive"] = "autoregressive"
    image: ImageSpec = ImageSpec()
    connector: Connector = PixelShuffle()

    @model_validator(mode="after")
    def _tokens_exist(self) -> "Model":
        self.image.tokens(self.connector)
        return self

    @property
    def image_tokens(self) -> int:
        return self.image.tokens(self.connector)


class Stage(_Part):
    """One stage of training, as a value.

    A global batch is `global_batch` packed rows of `sequence_length` tokens; each rank runs
    `global_batch / (ranks * micro_batch)` micro-batches a step (gradient accumulation).
    """

    name: str
    init_from: str = Field(
        description="'backbones', or the stage whose weights this one starts from"
    )
    train: dict[str, float] = Field(
        description="module -> factor on the learning rate; modules not named are frozen"
    )
    mixture: dict[str, Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="source -> weight"
    )
    steps: int = Field(ge=1)
    global_batch: int = Field(ge=1, description="rows, over all ranks")
    micro_batch: int = Field(ge=1, description="rows, one rank, one forward pass")
    sequence_length: int = Field(ge=16, description="tokens of a row")
    mask: Literal["causal", "image_full"] = "image_full"
    loss_on: Literal["all_text", "answers"] = "all_text"
    lr: float = Field(gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="last lr as a share of lr")
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = Field(1.0, gt=0, description="largest norm of the global gradient")
    activation_checkpointing: bool = True
    ds_config: str = Field("zero3", description="name in ds_configs/, or a path")
    checkpoint_every: int = Field(100, ge=1, description="steps")
    keep_checkpoints: int = Field(2, ge=2)

    @model_validator(mode="after")
    def _consistent(self) -> "Stage":
        unknown = [m for m in self.train if m not in MODULES]
        if unknown:
            raise ValueError(
                "; ".join(
                    f"train: no module '{m}'{nearest(m, MODULES)} (there are {', '.join(MODULES)})"
                    for m in unknown
                )
            )
        if not self.train or min(self.train.values()) <= 0:
            raise ValueError("train: name at least one module, each with a factor above 0")
        if self.global_batch % self.micro_batch:
            raise ValueError(
                f"global_batch ({self.global_batch}) is no multiple of micro_batch ({self.micro_batch})"
            )
        return self

    def accumulation(self, world_size: int) -> int:
        """Micro-batches a step on each of `world_size` ranks. Raises ConfigError where rows are left over."""
        if self.global_batch % (world_size * self.micro_batch):
            fits = [
                n
                for n in range(1, self.global_batch + 1)
                if self.global_batch % (n * self.micro_batch) == 0
            ]
            raise ConfigError(
                f"stage '{self.name}': global_batch {self.global_batch} (rows) does not divide over "
                f"{world_size} ranks with micro_batch {self.micro_batch}.\n"
                f"  Allowed rank counts (--nproc): {', '.join(map(str, fits))}; or change global_batch."
            )
        return self.global_batch // (world_size * self.micro_batch)


class Evaluation(_Part):
    """Held-out evaluation, after each stage. An empty list of sources means: all that fit the task."""

    caption_sources: tuple[str, ...] = ()
    vqa_sources: tuple[str, ...] = ()
    loss_sources: tuple[str, ...] = ()
    captions: int = Field(200, ge=0, description="images to caption; 0 turns the task off")
    questions: int = Field(400, ge=0)
    documents: int = Field(200, ge=0, description="samples whose held-out loss is measured")
    batch: int = Field(50, ge=1)
    max_new_tokens: int = Field(32, ge=1)


class Recipe(_Part):
    """A whole run on a page."""

    name: str
    seed: int = 0
    data: Data = Data()
    backbones: Backbones = Backbones()
    model: Model = Model()
    stages: tuple[Stage, ...] = Field(min_length=1)
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _stages_follow(self) -> "Recipe":
        seen = ["backbones"]
        for stage in self.stages:
            if stage.name in seen:
                raise ValueError(f"stages: the name '{stage.name}' is taken")
            if stage.init_from not in seen:
                raise ValueError(
                    f"stage '{stage.name}': init_from '{stage.init_from}' is no earlier stage"
                    f"{nearest(stage.init_from, seen)} (there are {', '.join(seen)})"
                )
            seen.append(stage.name)
        return self

    def stage(self, name: str) -> Stage:
        """The stage of that name. Raises ConfigError where the recipe has none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = [s.name for s in self.stages]
        raise ConfigError(
            f"recipe '{self.name}' has no stage '{name}'{nearest(name, names)}\n"
            f"  Stages: {', '.join(names)}"
        )


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe at `path` (a file, or the name of one that ships), with `key=value` overrides applied.

    `defaults:` of the page fills in what a stage does not say. Raises ConfigError with every fault.
    """
    file = _find(path)
    text = file.read_text(encoding="utf-8")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        page = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ConfigError(f"{file}: not YAML: {e}") from None
    if not isinstance(page, dict):
        raise ConfigError(f"{file}: a recipe is a mapping of keys; see {RECIPES / 'tiny.yaml'}")
    _apply_overrides(page, overrides or [])
    defaults = page.pop("defaults", None) or {}
    stages = page.get("stages")
    if isinstance(defaults, dict) and isinstance(stages, list):
        page["stages"] = [{**defaults, **s} if isinstance(s, dict) else s for s in stages]
    try:
        return Recipe.model_validate(page)
    except ValidationError as e:
        raise ConfigError(explain(e, Recipe, file, node)) from None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as a page that `load_recipe` reads back to an equal value."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _find(path: str | Path) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    shipped = {p.stem: p for p in sorted(RECIPES.glob("*.yaml"))}
    if str(path) in shipped:
        return shipped[str(path)]
    raise ConfigError(
        f"no recipe at {path}{nearest(file.stem, shipped)}\n"
        f"  A recipe is a YAML file, or the name of one that ships: {', '.join(shipped)}"
    )


def _apply_overrides(page: dict[str, Any], overrides: list[str]) -> None:
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override '{override}': expected key=value, for instance seed=1")
        *parents, last = key.split(".")
        node: Any = page
        for part in parents:
            if isinstance(node, list):
                names = [s.get("name") for s in node]
                if part not in names:
                    raise ConfigError(
                        f"override '{override}': no stage '{part}'{nearest(part, names)}"
                    )
                node = node[names.index(part)]
            else:
                node = node.setdefault(part, {})
            if not isinstance(node, dict | list):
                raise ConfigError(f"override '{override}': '{part}' is a value, not a section")
        if isinstance(node, list):
            raise ConfigError(f"override '{override}': name a key of the stage '{last}'")
        node[last] = yaml.safe_load(value)


def explain(
    error: ValidationError, model: type[BaseModel], file: Path, node: yaml.Node | None
) -> str:
    """All faults of a page, one a line: file:line, path, what was expected, nearest valid name."""
    # A key under `defaults:` is merged into every stage: say its fault once, at the line it stands on.
    found: dict[tuple[int | None, str], str] = {}
    for e in error.errors():
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
        found[(line, f"{shown}: {what}")] = f"  {file}:{line or 1}: {shown or 'recipe'}: {what}"
    lines = list(found.values())
    return f"{len(lines)} error{'s' if len(lines) > 1 else ''} in the recipe:\n" + "\n".join(lines)


_UNION_TAGS = ("pixel_shuffle", "perceiver")


def _fields_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Valid keys of the model that stands at `loc`, walking fields, tuples and unions of models."""
    models: list[type[BaseModel]] = [model]
    for part in loc:
        if isinstance(part, int):
            continue
        models = [
            inner
            for m in models
            if part in m.model_fields
            for inner in _models_in(m.model_fields[part].annotation)
        ]
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
            child = _child(_child(root, "defaults")[1] if _child(root, "defaults") else None, part)
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
