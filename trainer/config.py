"""The recipe: one YAML page that says what a run is, read by strict models before torch is imported.

Unknown keys are errors. All errors of a page are reported together, each with its line, its path and the
nearest valid name. `key=value` overrides follow the same rules.
"""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from data_pipeline.errors import ConfigError, nearest
from data_pipeline.image_spec import SPLIT_TILES
from data_pipeline.page import apply_overrides, find_page, load_page
from trainer.engine.guard import Guard
from trainer.engine.watchdog import Watchdog
from trainer.evaluation.config import HELDOUT, Evaluation, InTraining, Suite
from trainer.evaluation.thresholds import Threshold
from trainer.models.backbones_config import Backbones, Expected
from trainer.models.config import Model, Recomputed
from trainer.models.tuning import Tuning, check_modules
from trainer.observe.config import Observe

RECIPES = Path(__file__).parent / "recipes"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Part):
    """Where the datasets stand. A relative path counts from the run directory."""

    datasets: tuple[str, ...] = Field(
        ("data",), min_length=1, description="directories or URLs with a manifest.json"
    )
    sizes: str = Field("sizes", description="directory for the recorded sizes of samples; may be shared")
    workers: int = Field(0, ge=0, description="processes of each rank that prepare batches; 0: a thread")
    prefetch_gib: float = Field(1.0, gt=0, description="finished batches that wait, at most, on each rank")


class Share(_Part):
    """What one source gets of a mixture."""

    weight: float = Field(gt=0)
    max_epochs: float | None = Field(None, gt=0, description="then the source leaves, and the others share")

    @model_validator(mode="before")
    @classmethod
    def _spelt_out(cls, value: Any) -> Any:
        return {"weight": value} if isinstance(value, int | float | str) else value

    @model_serializer
    def _short(self) -> float | dict[str, float]:
        return {"weight": self.weight, "max_epochs": self.max_epochs} if self.max_epochs else self.weight


class Stage(_Part):
    """One stage of training, as a value.

    A global batch is `global_batch` packed rows of `sequence_length` tokens; each rank runs
    `global_batch / (ranks * micro_batch)` micro-batches a step (gradient accumulation).
    """

    name: str
    init_from: str = Field(description="'backbones', or the stage whose weights this one starts from")
    train: dict[str, Tuning] = Field(
        description="module -> factor on the learning rate, or an adapter; modules not named are frozen"
    )
    mixture: dict[str, Share] = Field(min_length=1, description="source -> weight, or {weight, max_epochs}")
    mixture_by: Literal["samples", "tokens"] = Field("samples", description="what the weights are shares of")
    temperature: float = Field(1.0, gt=0, description="above 1, small sources gain: weight^(1 / temperature)")
    steps: int = Field(ge=1)
    global_batch: int = Field(ge=1, description="rows, over all ranks")
    micro_batch: int = Field(ge=1, description="rows, one rank, one forward pass")
    sequence_length: int = Field(ge=16, description="tokens of a row")
    images_per_row: int | None = Field(None, ge=1, description="tiles, at most: bounds the tower's memory")
    patches_per_row: int | None = Field(None, ge=1, description="patches, at most")
    longest_edge: int | None = Field(
        None, ge=1, description="pixels, of this stage's pictures; null: model.image's"
    )
    shortest_edge: int | None = Field(None, ge=1, description="the same")
    overlong: Literal["split", "shorten", "drop"] = Field(
        "split", description="what becomes of a sample that no row holds whole"
    )
    splitting: float = Field(
        0.0, ge=0, le=1, description="share of draws whose pictures come as four quarters and the whole"
    )
    shuffle_turns: bool = Field(False, description="a dialogue's questions in another order in each epoch")
    mask: Literal["causal", "image_full", "prefix_full"] = "image_full"
    loss_on: Literal["all_text", "answers"] = "all_text"
    neftune_alpha: float = Field(
        0.0, ge=0, description="noise on the embeddings of text (arXiv 2310.05914 tries 5, 10 and 15)"
    )
    lr: float = Field(gt=0)
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    decay_share: float = Field(0.2, gt=0, le=1, description="of all steps, at their end, under wsd")
    warmup_steps: int = Field(0, ge=0)
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="last lr as a share of lr")
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = Field(1.0, gt=0, description="largest norm of the global gradient")
    guard: Guard = Field(Guard(), description="what becomes of bad steps")
    watchdog: Watchdog = Field(Watchdog(), description="when a rank hangs, and when it is slow")
    activation_checkpointing: bool | dict[Recomputed, PositiveInt] = Field(
        True, description="recompute layers in the backward pass: all, none, or module -> every n-th layer"
    )
    compile: bool = Field(False, description="torch.compile, by layers: faster steps behind slow first ones")
    kernels: Literal["torch", "liger"] = Field("torch", description="of the language model; liger: CUDA only")
    ds_config: str = Field("zero3", description="name in ds_configs/, or a path")
    checkpoint_every: int = Field(100, ge=1, description="steps")
    keep_checkpoints: int = Field(2, ge=2)
    checkpoint_async: bool = Field(True, description="checkpoints are written while training goes on")
    checkpoint_staging: str | None = Field(
        None,
        min_length=1,
        description="directory on a disk of each node, $VARIABLES allowed; null: its memory",
    )
    evaluate: InTraining | None = Field(None, description="a suite that is evaluated as it trains")
    gate: dict[str, Threshold] = Field({}, description="metric -> threshold, before a next stage may start")

    @field_validator("train")
    @classmethod
    def _modules_can_be_trained(cls, train: dict[str, Tuning]) -> dict[str, Tuning]:
        check_modules(train)
        return train

    @model_validator(mode="after")
    def _rows_divide(self) -> "Stage":
        if self.global_batch % self.micro_batch:
            raise ValueError(
                f"global_batch ({self.global_batch}) is no multiple of micro_batch ({self.micro_batch})"
            )
        return self

    @model_validator(mode="after")
    def _what_is_evaluated_is_saved(self) -> "Stage":
        if self.evaluate is not None and self.evaluate.every % self.checkpoint_every:
            raise ValueError(
                f"evaluate.every ({self.evaluate.every}) is no multiple of checkpoint_every "
                f"({self.checkpoint_every}): what is evaluated is a checkpoint"
            )
        return self

    @model_validator(mode="after")
    def _a_prompt_is_no_target(self) -> "Stage":
        if self.mask == "prefix_full" and self.loss_on == "all_text":
            raise ValueError(
                "mask 'prefix_full' sees prompts whole, so they cannot be targets: set loss_on to 'answers' "
                "(captions and documents are rendered alike under both)"
            )
        return self

    @model_validator(mode="after")
    def _operators_are_fused_once(self) -> "Stage":
        if self.compile and self.kernels != "torch":
            raise ValueError(
                f"stage '{self.name}': compile and kernels={self.kernels} both fuse the operators of the "
                "language model: set compile to false, or kernels to torch"
            )
        return self

    def accumulation(self, world_size: int) -> int:
        """Micro-batches a step on each of `world_size` ranks. Raises ConfigError where rows are left over."""
        if self.global_batch % (world_size * self.micro_batch):
            fits = [
                n for n in range(1, self.global_batch + 1) if self.global_batch % (n * self.micro_batch) == 0
            ]
            raise ConfigError(
                f"stage '{self.name}': global_batch {self.global_batch} (rows) does not divide over "
                f"{world_size} ranks with micro_batch {self.micro_batch}.\n"
                f"  Allowed rank counts (--nproc): {', '.join(map(str, fits))}; or change global_batch."
            )
        return self.global_batch // (world_size * self.micro_batch)


class Recipe(_Part):
    """A whole run on a page."""

    name: str
    seed: int = 0
    data: Data = Data()
    backbones: Backbones = Backbones()
    model: Model = Model()
    stages: tuple[Stage, ...] = Field(min_length=1)
    evaluation: Evaluation = Evaluation()
    observe: Observe = Observe()

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

    @model_validator(mode="after")
    def _modules_exist(self) -> "Recipe":
        for stage in self.stages:
            recomputed = stage.activation_checkpointing
            named = [("train", stage.train), ("activation_checkpointing", recomputed)]
            for key, module in ((key, m) for key, ms in named if isinstance(ms, dict) for m in ms):
                if module not in self.model.modules:
                    raise ValueError(
                        f"stage '{stage.name}': {key}.{module}: a model of the architecture "
                        f"{self.model.architecture} has none (there are {', '.join(self.model.modules)}); "
                        f"leave it out, or set model.architecture to {module}"
                    )
        return self

    @model_validator(mode="after")
    def _suites_exist(self) -> "Recipe":
        names = [HELDOUT, *self.evaluation.suites]
        for stage in self.stages:
            if stage.evaluate is not None and stage.evaluate.suite not in names:
                raise ValueError(
                    f"stage '{stage.name}': evaluate.suite '{stage.evaluate.suite}' is none of "
                    f"evaluation.suites{nearest(stage.evaluate.suite, names)} (there are {', '.join(names)})"
                )
        return self

    @model_validator(mode="after")
    def _pictures_are_read(self) -> "Recipe":
        read = {"backbones": self.model.cross_attention is None}
        for stage in self.stages:
            read[stage.name] = read[stage.init_from] or "cross_attention" in stage.train
            if not read[stage.name]:
                raise ValueError(
                    f"stage '{stage.name}': the gates of cross-attention begin at 0, and neither this stage "
                    "nor one before it trains them: no picture would be read. Add cross_attention to train"
                )
        return self

    @model_validator(mode="after")
    def _experts_have_no_adapters(self) -> "Recipe":
        for stage in self.stages if self.model.moe else ():
            language = stage.train.get("language")
            if language and language.adapter:
                raise ValueError(
                    f"stage '{stage.name}': train.language: {language.kind} stands beside linear layers, and "
                    "the experts of model.moe are none: their router would never be trained. Train the "
                    "language model in full (language: 1.0), freeze it, or leave model.moe out"
                )
        return self

    @model_validator(mode="after")
    def _experts_are_not_compiled(self) -> "Recipe":
        for stage in self.stages if self.model.moe else ():
            if stage.compile:
                raise ValueError(
                    f"stage '{stage.name}': compile: the experts of model.moe note where tokens go as they "
                    "run, which compiled code would not. Set compile to false, or leave model.moe out"
                )
        return self

    @model_validator(mode="after")
    def _pictures_fit_rows(self) -> "Recipe":
        for stage in self.stages:
            try:
                image_tokens = self.model_of(stage).image_tokens
            except ValidationError as e:
                why = "; ".join(error["msg"].removeprefix("Value error, ") for error in e.errors())
                raise ValueError(f"stage '{stage.name}': {why}") from None
            tiles = SPLIT_TILES if stage.splitting else 1
            # Visual tokens, the tokens around each tile, <bos>, and at least one target.
            least = tiles * (image_tokens + 1) + 3
            if least > stage.sequence_length:
                split = f" split into {tiles} tiles" if stage.splitting else ""
                raise ValueError(
                    f"stage '{stage.name}': a picture{split} takes {least} tokens with all beside it, "
                    f"sequence_length is {stage.sequence_length}: raise it, or lower the visual tokens of a "
                    "tile (image.longest_edge, connector)"
                )
        return self

    @property
    def expected(self) -> Expected:
        """What the backbones are; where the recipe does not say, what `fovea backbones` makes of it."""
        return self.backbones.expects or self.backbones.made(self.model.image)

    def model_of(self, stage: Stage) -> Model:
        """The model's page with pictures of the size that the stage has them at."""
        edges = {"longest_edge": stage.longest_edge, "shortest_edge": stage.shortest_edge}
        given = {name: pixels for name, pixels in edges.items() if pixels is not None}
        if not given:
            return self.model
        page = self.model.model_dump()
        return Model.model_validate(page | {"image": page["image"] | given})

    def stage(self, name: str) -> Stage:
        """The stage of that name, or of that number, from 1. Raises ConfigError where the recipe has none."""
        names = [s.name for s in self.stages]
        if name in names:
            return self.stages[names.index(name)]
        if name.isdecimal() and 1 <= int(name) <= len(names):
            return self.stages[int(name) - 1]
        raise ConfigError(
            f"recipe '{self.name}' has no stage '{name}'{nearest(name, names)}\n  Stages: {', '.join(names)}"
        )

    def suite(self, name: str) -> Suite | None:
        """The benchmarks of that name; None for the held-out ones. Raises ConfigError for another name."""
        if name == HELDOUT:
            return None
        names = [HELDOUT, *self.evaluation.suites]
        if name not in names:
            raise ConfigError(
                f"recipe '{self.name}' has no suite '{name}'{nearest(name, names)}\n"
                f"  Suites: {', '.join(names)}; a suite is named under evaluation.suites, "
                "in a run that has begun in its recipe.resolved.yaml"
            )
        return self.evaluation.suites[name]


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe at `path` (a file, or the name of one that ships), with `key=value` overrides applied.

    `defaults:` of the page fills in what a stage does not say. Raises ConfigError with every fault.
    """

    def prepare(page: dict[str, Any]) -> dict[str, Any]:
        apply_overrides(page, overrides or [])
        defaults = page.pop("defaults", None) or {}
        stages = page.get("stages")
        if isinstance(defaults, dict) and isinstance(stages, list):
            page["stages"] = [{**defaults, **s} if isinstance(s, dict) else s for s in stages]
        return page

    return load_page(find_page(path, RECIPES), Recipe, prepare)


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as a page that `load_recipe` reads back to an equal value."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
