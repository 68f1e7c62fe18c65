"""Batched greedy decoding with a cache, under the same mask as training.

Shapes: B prompts, T positions of the longest prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from data_pipeline.batch import IGNORE, PAD_DOCUMENT, Batch
from data_pipeline.stream.collate import flat
from data_pipeline.stream.decode import Picture
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.models.masks import dense_mask


@dataclass(frozen=True)
class Prompt:
    """What a model is to continue. `image_ids` counts from 1 within the prompt; 0 is text.

    `written` marks the tokens that are the model's own, answers to earlier questions; empty means none.
    """

    input_ids: list[int]
    image_ids: list[int]
    pictures: Sequence[Picture] = ()  # one for each image id
    written: Sequence[bool] = ()

    def __post_init__(self) -> None:
        if not self.input_ids or len(self.input_ids) != len(self.image_ids):
            raise ValueError(
                f"a prompt has {len(self.input_ids)} input_ids and {len(self.image_ids)} image_ids; "
                "give one image id per token, and at least one token"
            )
        if len(self.written) not in (0, len(self.input_ids)):
            raise ValueError(
                f"a prompt has {len(self.input_ids)} input_ids and says of {len(self.written)} who wrote them"
            )


@torch.no_grad()
def generate(
    model: AutoregressiveVLM,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    eos_id: int | None,
    pad_id: int,
) -> list[list[int]]:
    """The greedy continuation of each prompt, without prompt and without the end token.

    A row ends at `eos_id` or after `max_new_tokens`; decoding ends when all rows have. With `eos_id` None
    it takes exactly `max_new_tokens` steps, which ranks that share sharded weights have to do together.
    """
    if not prompts or max_new_tokens < 1:
        return [[] for _ in prompts]
    training = model.training
    model.eval()
    try:
        device = model.new_tokens.weight.device
        return _decode(model, _pad_left(model, prompts, pad_id).to(device), max_new_tokens, eos_id, pad_id)
    finally:
        model.train(training)


def _decode(
    model: AutoregressiveVLM, batch: Batch, max_new_tokens: int, eos_id: int | None, pad_id: int
) -> list[list[int]]:
    rows, length = batch.input_ids.shape
    device = batch.input_ids.device
    # The mask's predicate is laid out over prompt and continuation at once; a step reads its row of it.
    # What is new has nothing ahead of it, whatever its label.
    later = torch.ones(rows, max_new_tokens, dtype=torch.int64, device=device)
    see = model.see(
        torch.cat([batch.document_ids, later], dim=1),
        torch.cat([batch.image_ids, 0 * later], dim=1),
        torch.cat([batch.labels, later], dim=1),
    )
    # Without a config the cache keeps every key: a sliding window is the predicate's affair.
    cache = DynamicCache()
    embeddings, media = model.inputs(batch)
    positions = batch.positions
    if media is not None:
        media = model.cross_attention.keep(media)
    first = 0
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    chosen: list[torch.Tensor] = []
    for step in range(max_new_tokens):
        mask = dense_mask(see, rows, length + step, device, first_query=first)
        hidden = model.decode(embeddings, mask, positions, cache, media)
        tokens = model.head(hidden[:, -1]).argmax(-1)
        if eos_id is not None:
            tokens = tokens.masked_fill(ended, pad_id)
            chosen.append(tokens.masked_fill(ended, eos_id))
            ended = ended | (tokens == eos_id)
            if bool(ended.all()):
                break
        else:
            chosen.append(tokens)
        embeddings, positions = model.embed_text(tokens[:, None]), positions[:, -1:] + 1
        first = length + step
        media = media and media.last()
    return [_until(row, eos_id) for row in torch.stack(chosen, dim=1).tolist()]


def _until(tokens: list[int], eos_id: int | None) -> list[int]:
    return tokens[: tokens.index(eos_id)] if eos_id in tokens else tokens


def _labels(prompt: Prompt) -> list[int]:
    """As in training, a label before each token of the model's own."""
    written = prompt.written or [False] * len(prompt.input_ids)
    after = zip(prompt.input_ids[1:], written[1:], strict=True)
    return [token if mine else IGNORE for token, mine in after] + [IGNORE]


def _pad_left(model: AutoregressiveVLM, prompts: Sequence[Prompt], pad_id: int) -> Batch:
    """One row per prompt, all ending at the same position, so that each step adds one position to all."""
    longest = max(len(p.input_ids) for p in prompts)

    def left(values: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
        return torch.tensor([[filler] * (longest - len(v)) + list(v) for v in values])

    image_ids, images = [], 0
    for prompt in prompts:
        image_ids.append([i and i + images for i in prompt.image_ids])
        images += len(prompt.pictures)
    input_ids = left([p.input_ids for p in prompts], pad_id)
    pictures = [picture for p in prompts for picture in p.pictures]
    patches, patch_index = flat(pictures, model.config.image)
    return Batch(
        input_ids=input_ids,
        labels=left([_labels(p) for p in prompts], IGNORE),
        positions=left([range(len(p.input_ids)) for p in prompts], 0),
        document_ids=left([[1] * len(p.input_ids) for p in prompts], PAD_DOCUMENT),
        image_ids=left(image_ids, 0),
        patches=patches,
        patch_index=patch_index,
        grids=tuple(picture.grid for picture in pictures),
    )
