"""The backbones' part of a recipe: where they stand, what they must be, and how `fovea backbones` makes them.

No torch: recipes are checked before torch is imported.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.image_spec import ImageSpec


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VisionBackbone(_Part):
    """The SigLIP-shaped tower that `fovea backbones` trains on dense patch labels."""

    width: int = Field(128, ge=8)
    layers: int = Field(3, ge=1)
    heads: int = Field(4, ge=1)
    steps: int = Field(1000, ge=0)
    batch: int = Field(32, ge=1, description="images a step")
    lr: float = Field(1e-3, gt=0)

    def shape(self, image: ImageSpec) -> dict[str, Any]:
        """Values of its config.json."""
        return {
            "hidden_size": self.width,
            "intermediate_size": 4 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "image_size": image.longest_edge,
            "patch_size": image.patch,
        }


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

    def shape(self) -> dict[str, Any]:
        """Values of its config.json."""
        return {
            "model_type": "mistral",
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": 4 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.width // self.heads,
            "max_position_embeddings": self.max_positions,
            "sliding_window": None,
            "tie_word_embeddings": False,
        }


class Expected(_Part):
    """The shape of backbones: values of their config.json, enough to build them without weights."""

    vision: dict[str, Any] = Field(description="of the tower: hidden_size, image_size, ...")
    language: dict[str, Any] = Field(description="of the language model: model_type, hidden_size, ...")
    layout: Literal["tiny", "idefics2", "mistral"] = Field(description="of the tokenizer")


class Backbones(_Part):
    """Directories of transformers format: vision/, language/, tokenizer/.

    A relative `path` counts from the run directory. `vision` and `language` say how `fovea backbones`
    makes them; they are not read where the directories come from elsewhere.
    """

    path: str = "backbones"
    expects: Expected | None = Field(None, description="what they must be; null: any")
    vision: VisionBackbone = VisionBackbone()
    language: LanguageBackbone = LanguageBackbone()

    def made(self, image: ImageSpec) -> Expected:
        """What `fovea backbones` makes for pictures of that size."""
        return Expected(vision=self.vision.shape(image), language=self.language.shape(), layout="tiny")
