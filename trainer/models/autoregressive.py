"""The autoregressive model: tower -> connector -> spliced into the sequence of the language model.

Shapes: B rows, T positions a row, N images, K visual tokens an image, D the language model's width,
V entries of the language model's vocabulary.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import Cache, PreTrainedModel
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from data_pipeline.batch import Batch
from trainer.models.config import Model, Recomputed
from trainer.models.cross_attention import Media
from trainer.models.language import window
from trainer.models.loss import target_loss
from trainer.models.masks import MaskKind, Predicate, allowed, full_blocks, mask_of
from trainer.models.neftune import noisy
from trainer.models.recompute import EVERY_LAYER, recompute
from trainer.models.splice import splice
from trainer.models.vision import patch_features

NEW_TOKENS = 3
"""Tokens of the layout (data_pipeline/stream/layout.py) whose ids follow the language model's vocabulary,
which stays as it is: around a picture, in place of its features, and `idefics2`'s end of an answer."""


class NewTokens(nn.Embedding):
    """The embeddings of the new tokens, and where one of them may be a target, their rows of the output head.

    int64[...] -> [..., D]; `head` is a Linear of D to NEW_TOKENS, or None where they are only read.
    """

    def __init__(self, language: PreTrainedModel, predicted: bool) -> None:
        width = language.config.hidden_size
        super().__init__(NEW_TOKENS, width)
        std = getattr(language.config, "initializer_range", 0.02)
        nn.init.normal_(self.weight, std=std)
        self.head: nn.Linear | None = None
        if predicted:
            self.head = nn.Linear(width, NEW_TOKENS, bias=False)
            nn.init.normal_(self.head.weight, std=std)
            if language.config.tie_word_embeddings:
                self.head.weight = self.weight


class AutoregressiveVLM(nn.Module):
    """Every forward pass runs every module exactly once, whatever the batch holds.

    Where ranks share weights or reduce gradients together, a rank that skips a module leaves the others
    waiting for ever. So a batch without images runs the tower and the connector on a blank image of the
    smallest size, times zero.
    """

    def __init__(
        self,
        config: Model,
        vision: Idefics2VisionTransformer,
        connector: nn.Module,
        language: PreTrainedModel,
        mask: MaskKind = "image_full",
        predicts_new: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.mask: MaskKind = mask
        """A stage may set it: who sees whom (trainer/models/masks.py)."""
        self.neftune_alpha = 0.0
        """A stage may set it: noise on the embeddings of text while training (trainer/models/neftune.py)."""
        self.target_losses = torch.zeros(0)
        """float32[targets] of the last forward pass: the loss of each target, in reading order."""
        self.vision = vision
        self.connector = connector
        self.language = language
        self.vocabulary: int = language.config.vocab_size
        self.new_tokens = NewTokens(language, predicts_new)

    def forward(self, batch: Batch) -> torch.Tensor:
        """The cross-entropy of all targets in the batch, summed: float32[]."""
        loss, self.target_losses = target_loss(self._hidden(batch), batch.labels, self.head)
        return loss

    def logits(self, batch: Batch) -> torch.Tensor:
        """Scores of the next token at every position: [B, T, V], as `head` gives them."""
        return self.head(self._hidden(batch))

    @property
    def head(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """[..., D] -> scores [..., V], or [..., V + NEW_TOKENS] where new tokens may be targets."""
        head, new = self.language.get_output_embeddings(), self.new_tokens.head
        return head if new is None else partial(_score_all, head, new)

    def inputs(self, batch: Batch) -> tuple[torch.Tensor, Media | None]:
        """What `decode` reads: the sequence [B, T, D], and pictures beside it where they are not in it."""
        return self.embed(batch), None

    def embed(self, batch: Batch) -> torch.Tensor:
        """The sequence as the language model reads it: [B, T, D]."""
        features, text = self.image_features(batch), self.read_text(batch)
        if not batch.grids:
            # The graph reaches each parameter of tower and connector, with gradients of exactly zero.
            text = text + (features * 0).sum()
            features = features[:0]
        return splice(text, features, batch.image_ids)

    def image_features(self, batch: Batch) -> torch.Tensor:
        """[N, K, D], K visual tokens an image; of one blank image where the batch has none."""
        patches, patch_index, grids = batch.patches, batch.patch_index, batch.grids
        if not grids:
            patches, patch_index, grids = self._blank(batch.input_ids.device)
        seen = patch_features(self.vision, patches, patch_index, grids)
        return self.connector(seen, patch_index, grids)

    def read_text(self, batch: Batch) -> torch.Tensor:
        """[B, T, D], the embeddings of all tokens, with a stage's noise while training."""
        text = self.embed_text(batch.input_ids)
        if self.training and self.neftune_alpha:
            return noisy(text, batch.document_ids, self.neftune_alpha)
        return text

    def embed_text(self, input_ids: torch.Tensor) -> torch.Tensor:
        """int64[B, T] -> [B, T, D]. Both tables are read at every position, so both get gradients."""
        last = self.vocabulary - 1
        text = self.language.get_input_embeddings()(input_ids.clamp(max=last))
        new = self.new_tokens((input_ids - self.vocabulary).clamp(min=0))
        return torch.where((input_ids > last)[..., None], new, text)

    def see(self, document_ids: torch.Tensor, image_ids: torch.Tensor, labels: torch.Tensor) -> Predicate:
        """Who sees whom, by this model's mask and its language model's window."""
        return allowed(document_ids, full_blocks(self.mask, image_ids, labels), window(self.language))

    def decode(
        self,
        embeddings: torch.Tensor,
        mask: torch.Tensor | BlockMask,
        positions: torch.Tensor,
        cache: Cache | None = None,
        media: Media | None = None,
    ) -> torch.Tensor:
        """embeddings [B, Q, D], mask [B, 1, Q, T], positions int64[B, Q] -> last hidden states [B, Q, D].

        The mask is dense (bool) or FlexAttention's, one for all layers. Q is T, or where `cache` holds what
        stood before, the number of new positions. `media` is that of `inputs`; here it is None.
        """
        return self.language.base_model(
            inputs_embeds=embeddings,
            attention_mask=mask,  # four dimensions: transformers passes it to attend_under_mask as it is
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def enable_activation_checkpointing(self, every: bool | Mapping[Recomputed, int] = True) -> None:
        """Recompute layers in the backward pass: all, none, or of each module named every n-th.

        Call it after freeze(): a frozen tower keeps no graph, so nothing of it is made twice.
        """
        if isinstance(every, bool):
            every = EVERY_LAYER if every else {}
        for module, n in every.items():
            part = getattr(self, module, None)
            if part is not None and (module != "vision" or any(p.requires_grad for p in part.parameters())):
                recompute(part, n)

    def _hidden(self, batch: Batch) -> torch.Tensor:
        rows, length = batch.input_ids.shape
        see = self.see(batch.document_ids, batch.image_ids, batch.labels)
        mask = mask_of(see, rows, length, batch.input_ids.device)
        embeddings, media = self.inputs(batch)
        return self.decode(embeddings, mask, batch.positions, media=media)

    def _blank(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, tuple[tuple[int, int], ...]]:
        """An image of one patch: uint8[1, 3, p, p], its index int64[1, 3] and its grid."""
        p = self.config.image.patch
        return (
            torch.zeros(1, 3, p, p, dtype=torch.uint8, device=device),
            torch.zeros(1, 3, dtype=torch.int64, device=device),
            ((1, 1),),
        )


def _score_all(head: nn.Module, new: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    return torch.cat([head(hidden), new(hidden)], dim=-1)
