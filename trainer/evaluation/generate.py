"""Batched decoding with a cache, greedy or sampled, under the same mask as training, for both architectures.

Shapes: B prompts, T positions of the longest prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from data_pipeline.batch import IGNORE, PAD_DOCUMENT, Batch
from data_pipeline.stream.collate import flat
from data_pipeline.stream.decode import Picture
from trainer.evaluation.sampling import GREEDY, Chooser, Decoding, stops
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.models.crossed import CrossAttentionVLM
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
    how: Sequence[Decoding] = (),
    text: Callable[[list[int]], str] | None = None,
    together: Callable[[bool], bool] = bool,
    device: torch.device | None = None,
) -> list[list[int]]:
    """The continuation of each prompt, without prompt and without the end token.

    `how` says it for each prompt; empty is greedy for all. A row ends at `eos_id`, after `max_new_tokens`, or
    with the token by which a stop word stands in `text` of its tokens (`until_stop` takes the word off).
    Decoding ends when all rows have. With `eos_id` None it takes exactly `max_new_tokens` steps.

    Ranks that share sharded weights decode together, whatever their rows say: `together` is asked at each
    step, by all of them, whether any rank has rows that go on (evaluation/lockstep.py). `device`: where the
    model computes, where that is not where its weights stand, as with ZeRO's offload.
    """
    if not prompts or max_new_tokens < 1:
        return [[] for _ in prompts]
    how = how or [GREEDY] * len(prompts)
    if len(how) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts, and {len(how)} times how to continue one")
    if text is None and any(h.stop for h in how):
        raise ValueError("stop words are looked for in a text: give `text`, a tokenizer's decode")
    ends = [_Ending(eos_id, h.stop, text) for h in how]
    training = model.training
    model.eval()
    try:
        device = device or model.new_tokens.weight.device
        batch = _pad_left(model, prompts, pad_id).to(device)
        return _decode(model, batch, max_new_tokens, pad_id, Chooser(how, device), ends, together)
    finally:
        model.train(training)


@dataclass(frozen=True)
class _Ending:
    """Where a row ends. With `eos_id` None all rows take the same steps, whatever they say."""

    eos_id: int | None
    stop: tuple[str, ...]
    text: Callable[[list[int]], str] | None

    def keep(self, tokens: list[int], token: int) -> bool:
        """Append the token unless it is the end; whether the row goes on."""
        if token == self.eos_id:
            return False
        tokens.append(token)
        return not (self.stop and self.text and stops(self.text(tokens), self.stop))


def _decode(
    model: AutoregressiveVLM,
    batch: Batch,
    max_new_tokens: int,
    pad_id: int,
    choose: Chooser,
    ends: Sequence[_Ending],
    together: Callable[[bool], bool],
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
    if media is not None and isinstance(model, CrossAttentionVLM):
        media = model.cross_attention.keep(media)
    first = 0
    written: list[list[int]] = [[] for _ in ends]
    going = set(range(rows))
    for step in range(max_new_tokens):
        mask = dense_mask(see, rows, length + step, device, first_query=first)
        hidden = model.decode(embeddings, mask, positions, cache, media)
        tokens = choose(model.head(hidden[:, -1])).tolist()
        going = {row for row in going if ends[row].keep(written[row], tokens[row])}
        if not together(bool(going)) and ends[0].eos_id is not None:
            break
        fed = [[token if row in going else pad_id] for row, token in enumerate(tokens)]
        embeddings = model.embed_text(torch.tensor(fed, device=device))
        positions = positions[:, -1:] + 1
        first = length + step
        media = media and media.last()
    return written


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
