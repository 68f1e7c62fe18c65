"""The evaluation's own part of a recipe. No torch: recipes are checked before torch is imported."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


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
