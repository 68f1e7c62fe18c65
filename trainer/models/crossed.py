"""The cross-attention model: text reads pictures in blocks between the language model's layers.

In the sequence one placeholder stands for a picture; its own embedding is learned. Shapes as in
trainer/models/autoregressive.py.
"""

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import Cache, PreTrainedModel
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from data_pipeline.batch import Batch
from data_pipeline.errors import ConfigError
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.models.config import CrossAttention, Model
from trainer.models.cross_attention import CrossAttentionBlocks, Media, lay_out
from trainer.models.language import body_of
from trainer.models.masks import MaskKind

LANGUAGES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types of transformers whose layers run one after another, as `decode` runs them."""


class CrossAttentionVLM(AutoregressiveVLM):
    """Everything of the autoregressive model but the way of the visual tokens.

    The blocks stand beside the language model, whose weights keep their names. Here too every forward pass
    runs every module, on a blank image where the batch has none.
    """

    def __init__(
        self,
        config: Model,
        blocks: CrossAttention,
        vision: Idefics2VisionTransformer,
        connector: nn.Module,
        language: PreTrainedModel,
        mask: MaskKind = "image_full",
        predicts_new: bool = False,
    ) -> None:
        if language.config.model_type not in LANGUAGES:
            raise ConfigError(
                f"model.architecture cross_attention needs a language model of the type "
                f"{', '.join(LANGUAGES)}; this one is {language.config.model_type}"
            )
        super().__init__(config, vision, connector, language, mask, predicts_new)
        self.cross_attention = CrossAttentionBlocks(blocks, language.config)

    def inputs(self, batch: Batch) -> tuple[torch.Tensor, Media]:
        media = lay_out(self.image_features(batch), batch)
        return self.read_text(batch), media

    def decode(
        self,
        embeddings: torch.Tensor,
        mask: torch.Tensor | BlockMask,
        positions: torch.Tensor,
        cache: Cache | None = None,
        media: Media | None = None,
    ) -> torch.Tensor:
        """As the autoregressive model's, with `media` of `inputs`.

        The body's forward pass, written out: each layer is called as a module, so that what shards,
        recomputes or compiles it goes on doing so.
        """
        assert media is not None
        body = body_of(self.language)
        rotary = body.rotary_emb(embeddings, position_ids=positions)
        hidden = embeddings
        for number, layer in enumerate(body.layers):
            hidden = layer(
                self.cross_attention.before(number, hidden, media),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
                position_embeddings=rotary,
            )
        return body.norm(hidden)
