"""The evaluation's own part of a recipe. No torch: recipes are checked before torch is imported."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

HELDOUT = "heldout"
"""The suite that every recipe has: captions, questions and loss on its own held-out split."""


class Suite(BaseModel):
    """Benchmarks that are run together, by name: `fovea eval --suite NAME`, `fovea watch --suite NAME`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tasks: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        min_length=1, description="names of `fovea eval --tasks`, or task pages, *.yaml"
    )
    data: str = Field("benchmarks", description="their files; counted from the run directory")
    limit: int | None = Field(None, ge=1, description="so many samples of each task")
    shots: int | None = Field(None, ge=0, le=8, description="examples before a question; else the page's")
    batch: int = Field(16, ge=1, description="samples at once")
    seed: int = Field(0, ge=0, description="draws examples and the samples of a limit")


class InTraining(BaseModel):
    """What a stage evaluates as it trains: `suite` after the checkpoint of every so many steps."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    suite: str = Field(description=f"one of evaluation.suites, or '{HELDOUT}'")
    every: int = Field(ge=1, description="steps, a multiple of checkpoint_every; the last step counts too")


class Evaluation(BaseModel):
    """Held-out evaluation, after each stage. An empty list of sources means: all that fit the task."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    caption_sources: tuple[str, ...] = ()
    vqa_sources: tuple[str, ...] = ()
    loss_sources: tuple[str, ...] = ()
    captions: int = Field(200, ge=0, description="images to caption; 0 turns the task off")
    questions: int = Field(400, ge=0)
    documents: int = Field(200, ge=0, description="samples whose held-out loss is measured")
    batch: int = Field(50, ge=1)
    max_new_tokens: int = Field(32, ge=1)
    temperature: float = Field(0.0, ge=0, description="0: the best token each time; else answers are drawn")
    top_k: int | None = Field(None, ge=1, description="drawn among so many best tokens")
    top_p: float = Field(1.0, gt=0, le=1, description="and of them the fewest with that share of probability")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="an answer ends where one of these words begins"
    )
    suites: dict[Annotated[str, Field(pattern="^[A-Za-z0-9_-]+$")], Suite] = {}

    @model_validator(mode="after")
    def _heldout_is_taken(self) -> "Evaluation":
        if HELDOUT in self.suites:
            raise ValueError(f"suites: the name '{HELDOUT}' is that of the held-out evaluation, take another")
        return self
