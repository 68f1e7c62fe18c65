"""The evaluation's own part of a recipe. No torch: recipes are checked before torch is imported."""

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
