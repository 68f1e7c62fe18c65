"""Greedy decoding with a cache and padding, against decoding one prompt by whole forward passes."""

import dataclasses

import numpy as np
import pytest
import torch

from data_pipeline.batch import Batch
from data_pipeline.errors import DataError
from data_pipeline.image_spec import ImageSpec, PixelShuffle
from data_pipeline.stream.collate import flat
from data_pipeline.stream.decode import Picture
from toy_backbones import toy_mistral, toy_tower
from trainer.evaluation.generate import Prompt, generate
from trainer.models.build import build_model
from trainer.models.config import Model

IMAGE_SPEC = ImageSpec(longest_edge=32, patch=8)
VOCABULARY, START, END, IMAGE = 40, 40, 41, 42


def make_model(mask="image_full", **language):
    torch.manual_seed(0)
    config = Model(image=IMAGE_SPEC, connector=PixelShuffle(factor=2))
    lm = toy_mistral(VOCABULARY, **({"initializer_range": 0.5} | language))
    return build_model(config, toy_tower(), lm, mask)


def prompt(text, *seeds, written=()):
    ids, flags = [], []
    for number, _ in enumerate(seeds, start=1):
        ids += [START, IMAGE, IMAGE, IMAGE, IMAGE, END]
        flags += [0, number, number, number, number, 0]
    return Prompt(
        input_ids=ids + text,
        image_ids=flags + [0] * len(text),
        pictures=[picture(s, (3, 4 if s % 2 else 2)) for s in seeds],
        written=[False] * len(ids) + [t in written for t in text] if written else (),
    )


def picture(seed, grid):
    shape = (grid[0] * grid[1], 3, 8, 8)
    return Picture.of(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), grid)


def slowly(model, one, steps):
    """Greedy tokens by a whole forward pass each: no cache, no padding, no batch."""
    ids, flags, out = list(one.input_ids), list(one.image_ids), []
    written = list(one.written) or [False] * len(ids)
    patches, patch_index = flat(one.pictures, IMAGE_SPEC)
    for _ in range(steps):
        input_ids = torch.tensor([ids])
        batch = Batch(
            input_ids=input_ids,
            labels=torch.tensor(
                [[i if w else -100 for i, w in zip(ids[1:], written[1:], strict=True)] + [0]]
            ),
            positions=torch.arange(len(ids))[None],
            document_ids=torch.ones_like(input_ids),
            image_ids=torch.tensor([flags]),
            patches=patches,
            patch_index=patch_index,
            grids=tuple(p.grid for p in one.pictures),
        )
        out.append(int(model.logits(batch)[0, -1].argmax()))
        ids, flags, written = [*ids, out[-1]], [*flags, 0], [*written, True]
    return out


PROMPTS = [
    prompt([1, 2, 3], 1),
    prompt([4]),
    prompt([5, 6], 2, 3),
    prompt([7, 8, 9, 10, 11, 12]),
    prompt([3], 4),
    prompt([1, 2, 13, 14, 5, 6, 15, 7, 8], 5, written=(13, 14, 15)),  # two answers, the third is due
]


@pytest.mark.parametrize("mask", ["causal", "image_full", "prefix_full"])
@pytest.mark.parametrize("reach", [None, 4])
def test_a_batch_gives_what_whole_passes_give_one_by_one(mask, reach):
    model = make_model(mask, sliding_window=reach)
    batched = generate(model, PROMPTS, max_new_tokens=12, eos_id=None, pad_id=0)
    assert [len(row) for row in batched] == [12] * len(PROMPTS)
    for one, row in zip(PROMPTS, batched, strict=True):
        assert generate(model, [one], max_new_tokens=12, eos_id=None, pad_id=0) == [row]
        assert slowly(model, one, 12) == row


def test_the_image_and_the_mask_matter():
    def run(mask, image):
        return generate(make_model(mask), [prompt([1], image)], max_new_tokens=12, eos_id=None, pad_id=0)

    assert run("causal", 1) != run("causal", 5)
    assert run("causal", 1) != run("image_full", 1)
    assert run("image_full", 1) != run("prefix_full", 1)


def test_a_prompt_is_read_whole_but_for_the_answers_in_it():
    """Under prefix_full: told who wrote what, the cached continuation is the uncached one; else it is not."""
    model, one = make_model("prefix_full"), PROMPTS[-1]
    told = generate(model, [one], max_new_tokens=12, eos_id=None, pad_id=0)
    untold = dataclasses.replace(one, written=())
    assert told == [slowly(model, one, 12)]
    assert told != generate(model, [untold], max_new_tokens=12, eos_id=None, pad_id=0)


def test_it_ends_at_the_end_token_and_stops_early():
    model = make_model()
    free = generate(model, PROMPTS, max_new_tokens=12, eos_id=None, pad_id=0)
    eos = free[0][4]
    want = [row[: row.index(eos)] if eos in row else row for row in free]
    assert generate(model, PROMPTS, max_new_tokens=12, eos_id=eos, pad_id=0) == want
    calls = []
    model.head.register_forward_hook(lambda *_: calls.append(1))
    assert generate(model, PROMPTS[:1], max_new_tokens=500, eos_id=eos, pad_id=0) == want[:1]
    assert len(calls) == len(want[0]) + 1


def test_the_mode_is_put_back_and_nothing_is_asked_of_nothing():
    model = make_model().train()
    assert generate(model, [], max_new_tokens=3, eos_id=1, pad_id=0) == []
    assert generate(model, PROMPTS[:2], max_new_tokens=0, eos_id=1, pad_id=0) == [[], []]
    generate(model, PROMPTS[:1], max_new_tokens=1, eos_id=1, pad_id=0)
    assert model.training


def test_prompts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 input_ids and 1 image_ids"):
        Prompt(input_ids=[1, 2], image_ids=[0])
    with pytest.raises(ValueError, match="at least one token"):
        Prompt(input_ids=[], image_ids=[])
    with pytest.raises(ValueError, match="of 1 who wrote"):
        Prompt(input_ids=[1, 2], image_ids=[0, 0], written=[True])
    short = Prompt(
        input_ids=PROMPTS[0].input_ids[2:],
        image_ids=PROMPTS[0].image_ids[2:],
        pictures=PROMPTS[0].pictures,
    )
    with pytest.raises(DataError, match=r"3 positions .* 4 features"):
        generate(make_model(), [PROMPTS[1], short], max_new_tokens=1, eos_id=None, pad_id=0)
