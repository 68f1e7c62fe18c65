"""Who sees whom: against loops over pairs, and by changing a token or a pixel of a tiny model's batch."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from data_pipeline.batch import IGNORE
from data_pipeline.errors import ConfigError
from packed_rows import VOCABULARY, make_model, pack
from trainer.config import load_recipe
from trainer.models.attention import attend_under_mask
from trainer.models.masks import allowed, block_mask, dense_mask, full_blocks, mask_of

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
KINDS = ["causal", "image_full", "prefix_full"]

CAPTION = "i g2 w4"
DIALOGUE = "g2 i g3 w2 g4 w3"  # two turns
INTERLEAVED = "g1 w3 i w2 i i w1"
SILENT = "g4"  # not one target


def predicate(batch, kind, window=None):
    return allowed(batch.document_ids, full_blocks(kind, batch.image_ids, batch.labels), window)


def by_loops(batch, kind, window):
    """bool[B, T, T], by the words of the definition alone: documents, then pairs of their positions."""
    rows, length = batch.input_ids.shape
    out = torch.eye(length, dtype=torch.bool).repeat(rows, 1, 1)
    for b in range(rows):
        for document in range(1, int(batch.document_ids[b].max()) + 1):
            places = [t for t in range(length) if batch.document_ids[b, t] == document]
            runs, run = {}, 0
            for t in places:
                if t != places[0] and batch.labels[b, t - 1] != IGNORE:
                    run += 1  # the model wrote this token
                else:
                    runs[t] = run
            for q, k in itertools.product(places, places):
                image = int(batch.image_ids[b, q])
                ahead = kind == "image_full" and image != 0 and image == batch.image_ids[b, k]
                ahead |= kind == "prefix_full" and q in runs and runs[q] == runs.get(k)
                near = window is None or abs(q - k) < window
                out[b, q, k] = q == k or (near and (k < q or bool(ahead)))
    return out


ROWS = ([CAPTION, DIALOGUE, SILENT], [INTERLEAVED, CAPTION, "w1"], ["g1 w1"])


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_equals_loops_over_documents_and_pairs(kind, window):
    batch = pack(*ROWS)
    rows, length = batch.input_ids.shape
    see = predicate(batch, kind, window)
    dense = dense_mask(see, rows, length, "cpu")
    assert dense.shape == (rows, 1, length, length)
    assert dense[:, 0].equal(by_loops(batch, kind, window))
    assert dense.any(-1).all()  # padding too: a softmax over nothing is NaN
    assert create_mask(see, rows, 1, length, length, device="cpu").equal(dense)
    assert dense_mask(see, rows, length, "cpu", first_query=7).equal(dense[:, :, 7:])
    assert mask_of(see, rows, length, torch.device("cpu")).equal(dense)


def test_each_mask_sees_what_the_one_before_it_sees_and_more():
    batch = pack(*ROWS)
    rows, length = batch.input_ids.shape
    causal, image, prefix = (dense_mask(predicate(batch, kind), rows, length, "cpu") for kind in KINDS)
    assert (causal <= image).all()
    assert (image <= prefix).all()
    assert causal.sum() < image.sum() < prefix.sum()


def test_a_prefix_ends_where_the_first_target_is_predicted_and_each_question_is_a_run_of_its_own():
    batch = pack([DIALOGUE])
    blocks = full_blocks("prefix_full", batch.image_ids, batch.labels)[0].tolist()
    assert blocks == [1] * 11 + [0] * 2 + [3] * 4 + [0] * 3


def test_an_unknown_mask_is_refused():
    batch = pack(*ROWS)
    with pytest.raises(ValueError, match="prefix_full"):
        full_blocks("full", batch.image_ids, batch.labels)


def attention(heads=6, key_heads=2, rows=3, length=20, width=8):
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, heads, length, width), *[(rows, key_heads, length, width)] * 2]
    return [torch.randn(shape, generator=generator) for shape in shapes]


class Module(torch.nn.Module):
    num_key_value_groups = 3


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_flex_attention_and_sdpa_equal_attention_by_loops(kind, window):
    batch = pack(*ROWS)
    rows, length = batch.input_ids.shape
    query, key, value = attention(length=length)
    want = torch.zeros(rows, length, 6, 8)
    seen = by_loops(batch, kind, window)
    for b, h, q in itertools.product(range(rows), range(6), range(length)):
        keys = seen[b, q].nonzero().flatten().tolist()
        scores = [float(query[b, h, q] @ key[b, h // 3, k]) / math.sqrt(8) for k in keys]
        total = sum(math.exp(s) for s in scores)
        for k, score in zip(keys, scores, strict=True):
            want[b, q, h] += math.exp(score) / total * value[b, h // 3, k]
    see = predicate(batch, kind, window)
    for mask in (dense_mask(see, rows, length, "cpu"), block_mask(see, rows, length, "cpu")):
        out, _ = attend_under_mask(Module(), query, key, value, mask, scaling=8**-0.5)
        torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_flex_attention_equals_sdpa_over_several_blocks_of_uneven_length(kind):
    batch = pack([CAPTION, "g150 w30", DIALOGUE, INTERLEAVED], ["g20 w100", "i g90 w9"], length=300)
    see = predicate(batch, kind, 100)
    query, key, value = attention(rows=2, length=300)
    blocks = block_mask(see, 2, 300, "cpu")
    assert blocks.sparsity() > 0  # some blocks are left out
    flex, _ = attend_under_mask(Module(), query, key, value, blocks)
    dense, _ = attend_under_mask(Module(), query, key, value, dense_mask(see, 2, 300, "cpu"))
    torch.testing.assert_close(flex, dense, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_gives_the_same_under_block_masks_and_dense_ones(kind):
    model, batch = make_model(kind, sliding_window=9), pack(*ROWS)
    rows, length = batch.input_ids.shape
    see = model.see(batch.document_ids, batch.image_ids, batch.labels)
    with torch.no_grad():
        hidden = model.decode(model.embed(batch), block_mask(see, rows, length, "cpu"), batch.positions)
        torch.testing.assert_close(model.head(hidden), model.logits(batch), rtol=1e-5, atol=1e-5)


def test_one_mask_is_made_for_a_batch_and_all_layers_share_it(monkeypatch):
    model, met, made = make_model("prefix_full", num_hidden_layers=3), [], []
    for layer in model.language.base_model.layers:
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: met.append(kwargs["attention_mask"]), with_kwargs=True
        )

    def counted(*args):
        made.append(mask_of(*args))
        return made[-1]

    monkeypatch.setattr("trainer.models.autoregressive.mask_of", counted)
    model(pack(*ROWS))
    assert len(made) == 1
    assert [mask is made[0] for mask in met] == [True] * 3


def test_dropout_is_refused_where_it_would_be_left_out():
    batch = pack(*ROWS)
    rows, length = batch.input_ids.shape
    mask = block_mask(predicate(batch, "causal"), rows, length, "cpu")
    with pytest.raises(ValueError, match="attention_dropout"):
        attend_under_mask(Module(), *attention(length=length), mask, dropout=0.1)


def other_token(batch, b, t):
    ids = batch.input_ids.clone()
    ids[b, t] = (ids[b, t] + 1) % VOCABULARY
    return dataclasses.replace(batch, input_ids=ids)


def changed(model, one, two):
    """bool[B, T]: where not all bits of the logits are the same."""
    with torch.no_grad():
        return (model.logits(one) != model.logits(two)).any(-1)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_document_changes_no_bit_of_another_by_its_tokens_or_its_pixels(kind, window):
    model, batch = make_model(kind, sliding_window=window), pack(*ROWS)
    before = model.logits(batch).detach()
    for b, documents in enumerate(ROWS):
        for number in range(1, len(documents) + 1):
            inside = torch.zeros_like(batch.document_ids, dtype=torch.bool)
            inside[b] = batch.document_ids[b] == number
            text = inside & (batch.input_ids < VOCABULARY)
            ids = torch.where(text, (batch.input_ids + 7) % VOCABULARY, batch.input_ids)
            mine = torch.isin(batch.patch_index[:, 0] + 1, batch.image_ids[inside])
            patches = torch.where(mine[:, None, None, None], 255 - batch.patches, batch.patches)
            for part in ({"input_ids": ids}, {"patches": patches}):
                after = model.logits(dataclasses.replace(batch, **part)).detach()
                assert after[~inside].equal(before[~inside]), (b, number, list(part))
                moved = "patches" not in part or mine.any()
                assert after[inside].equal(before[inside]) != bool(moved), (b, number, list(part))


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_gets_no_gradient_from_the_loss_of_another(kind):
    model, batch = make_model(kind), pack(*ROWS)
    only = batch.document_ids[0] == 2
    labels = torch.full_like(batch.labels, IGNORE)
    labels[0, only] = batch.labels[0, only]
    embeddings = model.embed(batch).detach().requires_grad_()
    see = model.see(batch.document_ids, batch.image_ids, batch.labels)
    mask = mask_of(see, *batch.input_ids.shape, embeddings.device)
    logits = model.head(model.decode(embeddings, mask, batch.positions))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    reached = embeddings.grad.any(-1)
    assert reached[0, only][:-1].all()  # the document's last token predicts nothing
    assert not reached[0, ~only].any()
    assert not reached[1:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_no_prediction_depends_on_its_own_target_or_on_a_later_one(kind):
    """A leak of this kind would make the loss fall without learning."""
    model, batch = make_model(kind), pack([DIALOGUE, CAPTION], [INTERLEAVED])
    for b, t in (batch.labels != IGNORE).nonzero().tolist():
        moved = changed(model, batch, other_token(batch, b, t + 1))
        assert not moved[b, : t + 1].any(), (b, t)
        assert moved[b, t + 1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_seen_whole_by_itself_and_by_its_answer_under_prefix_full_alone(kind):
    model, batch = make_model(kind), pack([DIALOGUE])
    first_prompt, first_answer, second = range(11), range(11, 13), range(13, 17)
    by_prompt = changed(model, batch, other_token(batch, 0, first_prompt[-1]))[0].tolist()
    whole = kind == "prefix_full"
    assert by_prompt == [whole] * 10 + [True] * 10
    by_question = changed(model, batch, other_token(batch, 0, second[-1]))[0].tolist()
    assert [by_question[t] for t in (*first_prompt, *first_answer)] == [False] * 13
    assert [by_question[t] for t in second] == [whole] * 3 + [True]
    assert all(by_question[17:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_sliding_window_bounds_what_is_seen_in_every_mask(kind):
    model, batch = make_model(kind, sliding_window=3, num_hidden_layers=1), pack(["g12 w4"])
    for t in range(16):
        moved = changed(model, batch, other_token(batch, 0, t))[0].nonzero().flatten().tolist()
        ahead = 2 if kind == "prefix_full" and t < 12 else 0
        last = min(t + 2, 15)
        assert moved == list(range(max(0, t - ahead), last + 1)), t


def test_a_stage_whose_prompts_are_targets_cannot_see_them_whole():
    prefix = ["defaults.mask=prefix_full"]
    with pytest.raises(ConfigError, match="loss_on"):
        load_recipe("tiny", prefix)
    recipe = load_recipe("tiny", [*prefix, *(f"stages.{n}.loss_on=answers" for n in ("align", "pretrain"))])
    assert {stage.mask for stage in recipe.stages} == {"prefix_full"}
