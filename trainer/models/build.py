"""From a recipe's model page and two backbones to the model."""

from transformers import PreTrainedModel
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from data_pipeline.errors import ConfigError
from data_pipeline.stream.tokens import Tokenizer
from trainer.models.attention import ATTENTION as UNDER_MASK
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.models.config import Model
from trainer.models.connector import build_connector
from trainer.models.crossed import CrossAttentionVLM
from trainer.models.masks import MaskKind
from trainer.models.moe.layer import upcycle
from trainer.models.vision import ATTENTION as WITHIN_IMAGES


def build_model(
    config: Model,
    vision: Idefics2VisionTransformer,
    language: PreTrainedModel,
    mask: MaskKind = "image_full",
    predicts_new: bool = False,
) -> AutoregressiveVLM:
    """The model of `config.architecture`, its new parts freshly initialised.

    `predicts_new`: the tokenizer's layout makes a target of a token behind the language model's vocabulary.
    Raises ConfigError where the tower cuts other patches than the recipe says.
    """
    if vision.config.patch_size != config.image.patch:
        patch = vision.config.patch_size
        raise ConfigError(
            f"model.image.patch is {config.image.patch} pixels, but the vision tower was made for patches "
            f"of {patch}.\n  Set model.image.patch={patch}, or use another tower."
        )
    vision.set_attn_implementation(WITHIN_IMAGES)
    language.set_attn_implementation(UNDER_MASK)
    if config.moe is not None:
        upcycle(language, config.moe)
    connector = build_connector(
        config.connector, config.image, vision.config.hidden_size, language.config.hidden_size
    )
    match config.cross_attention:
        case None:
            return AutoregressiveVLM(config, vision, connector, language, mask, predicts_new)
        case blocks:
            return CrossAttentionVLM(config, blocks, vision, connector, language, mask, predicts_new)


def predicts_new(tokenizer: Tokenizer) -> bool:
    """Whether a token that the language model does not have of its own may be a target."""
    return bool(tokenizer.may_be_target[tokenizer.text_vocab_size :].any())
