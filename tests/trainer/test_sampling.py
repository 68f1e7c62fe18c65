"""Drawn continuations against whole passes and loops, transformers' own rules, and chance."""

import dataclasses
import math

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from crossed_model import END, IMAGE, START, make_model, pack, picture
from data_pipeline.image_spec import ImageSpec, Perceiver
from trainer.evaluation.generate import Prompt, generate
from trainer.evaluation.sampling import GREEDY, Decoding, draw, until_stop
from trainer.models.build import build_model
from trainer.models.config import Model


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 5])
@pytest.mark.parametrize("top_p", [1.0, 0.7, 0.05])
def test_tokens_are_as_likely_as_under_transformers_rules(temperature, top_k, top_p):
    scores = torch.randn(30, generator=torch.Generator().manual_seed(1)) * 2
    rules = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        rules.append(TopKLogitsWarper(top_k))
    rules.append(TopPLogitsWarper(top_p))
    want = rules(None, scores[None].double()).softmax(-1)[0]
    steps = 4000  # every 4000th part of the unit interval once: the counts are the shares, to one each
    uniform = (torch.arange(steps, dtype=torch.float64)[:, None] + 0.5) / steps
    filled = uniform.new_ones(steps, 1)
    found = draw(
        scores.expand(steps, -1), filled * temperature, filled * (top_k or math.inf), filled * top_p, uniform
    )
    shares = found.bincount(minlength=30) / steps
    assert ((shares > 0) <= (want > 0)).all()
    torch.testing.assert_close(shares.double(), want, atol=1.01 / steps, rtol=0)


def test_the_ends_of_the_unit_interval_draw_the_best_and_the_last_that_is_left():
    scores = torch.tensor([[0.0, 3.0, 1.0, -2.0]]).expand(2, -1)
    uniform = column(0.0, 1 - 2**-53)
    assert draw(scores, column(1, 1), column(3, 3), column(1, 1), uniform).tolist() == [1, 0]


def autoregressive():
    crossed = make_model()
    page = Model(
        image=ImageSpec(longest_edge=32, patch=8),
        connector=Perceiver(latents=3, depth=1, heads=2, kv_heads=1, head_dim=8),
    )
    torch.manual_seed(3)
    return build_model(page, crossed.vision, crossed.language, "image_full")


MODELS = {"autoregressive": autoregressive, "cross_attention": make_model}
TURNS = {
    "text": [5, 6],
    "a picture": [picture(1, 4, 4), 7],
    "pictures in two turns": [5, picture(2), 6, 9, 11, picture(3, 1, 4), picture(4), 3],
    "long": list(range(1, 12)),
    "late": [1, 2, 3, 4, picture(5)],
}


def prompts_of(model):
    width = model.config.image_tokens
    made = []
    for parts in TURNS.values():
        ids, images, pictures = [], [], []
        for part in parts:
            if isinstance(part, int):
                ids, images = [*ids, part], [*images, 0]
            else:
                pictures.append(part)
                ids += [START, *[IMAGE] * width, END]
                images += [0, *[len(pictures)] * width, 0]
        made.append(Prompt(ids, images, pictures))
    return made


def pick(scores, decoding, generator):
    """One token by loops over a list."""
    scores = scores.tolist()
    if not decoding.temperature:
        return max(range(len(scores)), key=scores.__getitem__)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])[: decoding.top_k]
    weights = [math.exp((scores[i] - scores[order[0]]) / decoding.temperature) for i in order]
    kept, reached = [], 0.0
    for i, w in zip(order, weights, strict=True):
        if reached < decoding.top_p * sum(weights):
            kept.append((i, w))
        reached += w
    left = float(torch.rand(1, generator=generator, dtype=torch.float64)) * sum(w for _, w in kept)
    for i, w in kept:
        left -= w
        if left < 0:
            return i
    raise AssertionError("nothing was drawn")


@torch.no_grad()
def slowly(model, prompt, decoding, steps):
    """A whole pass for each token: no cache, no padding, no batch."""
    generator = torch.Generator().manual_seed(decoding.seed)
    ids, images, out = list(prompt.input_ids), list(prompt.image_ids), []
    pictures = pack([list(prompt.pictures)]) if prompt.pictures else pack([[5]])
    for _ in range(steps):
        whole = torch.tensor([ids])
        batch = dataclasses.replace(
            pictures,
            input_ids=whole,
            labels=torch.full_like(whole, -100),
            positions=torch.arange(len(ids))[None],
            document_ids=torch.ones_like(whole),
            image_ids=torch.tensor([images]),
        )
        out.append(pick(model.logits(batch)[0, -1], decoding, generator))
        ids, images = [*ids, out[-1]], [*images, 0]
    return out


HOW = [
    Decoding(temperature=1.0, seed=1),
    GREEDY,
    Decoding(temperature=2.0, top_k=7, seed=2**40),
    Decoding(temperature=0.8, top_p=0.6, seed=3),
    Decoding(temperature=3.0, top_k=20, top_p=0.9, seed=4),
]


def run(model, prompts, how=(), steps=8, eos_id=None, **more):
    return generate(model, prompts, max_new_tokens=steps, eos_id=eos_id, pad_id=0, how=how, **more)


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_gives_what_whole_passes_give_one_by_one(name):
    model = MODELS[name]().eval()
    prompts = prompts_of(model)
    greedy = run(model, prompts)
    drawn = run(model, prompts, HOW)
    for row, prompt in enumerate(prompts):
        assert greedy[row] == slowly(model, prompt, GREEDY, 8) == run(model, [prompt])[0]
        assert drawn[row] == slowly(model, prompt, HOW[row], 8) == run(model, [prompt], [HOW[row]])[0]
    assert drawn[1] == greedy[1]
    assert drawn != greedy


def test_a_row_is_drawn_by_its_own_seed_whatever_stands_beside_it():
    model = make_model().eval()
    prompts = prompts_of(model)
    first = run(model, prompts, HOW)
    assert run(model, prompts, HOW) == first
    assert run(model, prompts[::-1], HOW[::-1]) == first[::-1]
    again = run(model, prompts, [dataclasses.replace(h, seed=h.seed + 1) for h in HOW])
    assert all((a == b) == (not h.temperature) for a, b, h in zip(again, first, HOW, strict=True))
    same = run(model, [prompts[0]] * 3, [HOW[0]] * 3)
    assert same == [first[0]] * 3


def test_first_tokens_are_drawn_as_often_as_the_model_says():
    model = make_model().eval()
    prompt = prompts_of(model)[1]
    n = 600
    found = run(model, [prompt] * n, [Decoding(temperature=1.5, seed=s) for s in range(n)], steps=1)
    counts = torch.tensor([row[0] for row in found]).bincount(minlength=40).double()
    batch = pack([TURNS["a picture"]])
    with torch.no_grad():
        want = n * (model.logits(batch)[0, -1].double() / 1.5).softmax(-1)
    large = want >= 5
    chi2 = ((counts - want)[large] ** 2 / want[large]).sum() + (counts - want)[~large].sum() ** 2 / max(
        1.0, float(want[~large].sum())
    )
    freedom = int(large.sum())
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom)  # four deviations


def test_the_pictures_are_read_once_and_the_layers_once_a_token():
    model = make_model().eval()
    calls = []
    model.cross_attention.blocks[0].key.register_forward_hook(lambda *_: calls.append("key"))
    model.connector.register_forward_hook(lambda *_: calls.append("connector"))
    model.language.base_model.layers[0].register_forward_hook(lambda _, args, out: calls.append(out.shape[1]))
    run(model, prompts_of(model)[:2], steps=4)
    longest = max(len(p.input_ids) for p in prompts_of(model)[:2])
    assert calls == ["connector", "key", longest, 1, 1, 1]


def letters(tokens):
    """Token n as the letter n and its successor: words span tokens."""
    return "".join(chr(97 + t % 26) + chr(97 + (t + 1) % 26) for t in tokens)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_ends_with_the_token_that_completes_a_stop_word(name):
    model = MODELS[name]().eval()
    prompts = prompts_of(model)
    free = run(model, prompts, HOW, steps=10)
    text = letters(free[0])
    spanning = text[3:6]  # from within the second token to within the third
    words = (spanning, text[8:10], "never there")
    how = [dataclasses.replace(h, stop=words if n == 0 else ()) for n, h in enumerate(HOW)]
    for eos_id in (None, 39):
        rows = run(model, prompts, how, steps=10, text=letters, eos_id=eos_id)
        # The shortest beginning of the free text in which a word stands; the other rows do not notice.
        want = next(k for k in range(1, 11) if any(w in letters(free[0][:k]) for w in words))
        if eos_id is None or eos_id not in free[0][:want]:
            assert rows[0] == free[0][:want]
            assert until_stop(letters(rows[0]), words) == text[: text.index(spanning)]
        whole = [row[: row.index(eos_id)] if eos_id in row else row for row in free]
        assert rows[1:] == whole[1:]


def test_text_is_cut_before_the_first_stop_word():
    assert until_stop("a red dog", ("dog", "red")) == "a "
    assert until_stop("a red dog", ("cat",)) == "a red dog"
    assert until_stop("a red dog", ()) == "a red dog"
    assert until_stop("stop", ("top", "stop")) == ""


def test_what_cannot_be_is_refused():
    model = make_model().eval()
    prompts = prompts_of(model)
    with pytest.raises(ValueError, match="5 prompts, and 1 times"):
        run(model, prompts, [GREEDY])
    with pytest.raises(ValueError, match="give `text`"):
        run(model, prompts[:1], [Decoding(stop=("x",))])
    for wrong in ({"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": 0}, {"stop": ("",)}):
        with pytest.raises(ValueError):
            Decoding(**wrong)
