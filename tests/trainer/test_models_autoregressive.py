"""The whole model: packing, leaks, text-only batches, checkpointing and weights, in fp32 at toy size."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data_pipeline.batch import Batch
from data_pipeline.errors import ConfigError, DataError
from data_pipeline.image_spec import ImageSpec, Perceiver, PixelShuffle
from data_pipeline.stream.collate import flat
from data_pipeline.stream.decode import Picture
from toy_backbones import toy_mistral, toy_tower
from trainer.models.build import build_model
from trainer.models.config import Model
from trainer.models.freeze import freeze
from trainer.models.weights import load_state, load_weights, save_weights

VOCABULARY, START, END, IMAGE = 40, 40, 41, 42
SHUFFLE = PixelShuffle(factor=2)
PERCEIVER = Perceiver(latents=3, depth=1, heads=2, kv_heads=1, head_dim=8)


def make_model(connector=SHUFFLE, mask="image_full", seed=0, **language):
    torch.manual_seed(seed)
    config = Model(image=ImageSpec(longest_edge=32, patch=8), connector=connector)
    lm = toy_mistral(VOCABULARY, **({"max_position_embeddings": 64, "initializer_range": 0.2} | language))
    return build_model(config, toy_tower(num_hidden_layers=2), lm, mask)


def document(tokens, image=False, tokens_per_image=4, seed=0):
    """ids, image flags and one image: the second and third token stand before the picture."""
    ids, flags = list(tokens), [0] * len(tokens)
    if image:
        ids[2:2] = [START, *[IMAGE] * tokens_per_image, END]
        flags[2:2] = [0, *[1] * tokens_per_image, 0]
    return ids, flags


def picture(seed, rows=4, columns=4):
    patches = np.random.default_rng(seed).integers(0, 256, (rows * columns, 3, 8, 8), dtype=np.uint8)
    return Picture.of(patches, (rows, columns))


def pack(*rows, length=None):
    """Rows of documents, each (ids, flags) of `document` and its picture or None -> Batch."""
    length = length or max(sum(len(ids) for (ids, _), _ in row) for row in rows)
    fields = {k: [] for k in ("input_ids", "labels", "positions", "document_ids", "image_ids")}
    pictures = []
    for row in rows:
        line = {k: [] for k in fields}
        for number, ((ids, flags), image) in enumerate(row, start=1):
            if image is not None:
                pictures.append(image)
            line["input_ids"] += ids
            line["labels"] += [i if i < VOCABULARY else -100 for i in ids[1:]] + [-100]
            line["positions"] += range(len(ids))
            line["document_ids"] += [number] * len(ids)
            line["image_ids"] += [f * len(pictures) for f in flags]
        for name, filler in zip(fields, (0, -100, 0, 0, 0), strict=True):
            fields[name].append(line[name] + [filler] * (length - len(line[name])))
    patches, patch_index = flat(pictures, ImageSpec(longest_edge=32, patch=8))
    return Batch(
        **{k: torch.tensor(v) for k, v in fields.items()},
        patches=patches,
        patch_index=patch_index,
        grids=tuple(p.grid for p in pictures),
    )


A, B, C = (document([5, 6, 7, 8], True), document([9, 3, 11, 2, 8], True), document([1, 2, 3]))


@pytest.mark.parametrize("mask", ["causal", "image_full"])
def test_a_packed_document_is_read_as_if_alone(mask):
    model = make_model(mask=mask)
    packed = model.logits(pack([(A, picture(1)), (B, picture(2, rows=2)), (C, None)], length=32))
    start = 0
    for ids_flags, image in ((A, picture(1)), (B, picture(2, rows=2)), (C, None)):
        alone = model.logits(pack([(ids_flags, image)]))
        width = alone.shape[1]
        torch.testing.assert_close(packed[:, start : start + width], alone, rtol=1e-5, atol=1e-5)
        start += width
    assert packed.isfinite().all()


@pytest.mark.parametrize("mask", ["causal", "image_full"])
def test_another_document_changes_not_one_bit(mask):
    model = make_model(mask=mask)
    other = document([30, 31, 32, 33], True)
    before = model.logits(pack([(A, picture(1)), (B, picture(2))], [(B, picture(2)), (A, picture(1))]))
    after = model.logits(pack([(other, picture(3)), (B, picture(2))], [(B, picture(2)), (other, picture(3))]))
    cut, width = len(A[0]), len(B[0])
    assert before[0, cut:].equal(after[0, cut:])
    assert before[1, :width].equal(after[1, :width])
    assert not torch.allclose(before[0, :cut], after[0, :cut])


@pytest.mark.parametrize("mask", ["causal", "image_full"])
def test_what_sees_the_end_of_an_image(mask):
    """Two pictures that differ in the last patch only: with pixel shuffle, in the last visual token only."""
    model = make_model(mask=mask)
    # A tower without layers, so that its own attention does not spread the difference.
    model.vision.encoder.layers = torch.nn.ModuleList()
    before = picture(1)
    after = before.patches.copy()
    after[-1] = 255 - after[-1]
    one, two = (model.logits(pack([(A, p)]))[0] for p in (before, Picture.of(after, before.grid)))
    changed = (one != two).any(-1).tolist()
    first, last = 3, 6  # visual positions of A
    assert changed[:first] == [False] * first
    assert changed[first:last] == [mask == "image_full"] * (last - first)
    assert all(changed[last:])


def test_a_later_token_changes_nothing_before_it():
    model = make_model()
    one = model.logits(pack([(A, picture(1))]))
    two = model.logits(pack([(document([5, 6, 7, 30], True), picture(1))]))
    assert one[:, :-1].equal(two[:, :-1])
    assert not one[:, -1].equal(two[:, -1])


@pytest.mark.parametrize("connector", [SHUFFLE, PERCEIVER])
def test_text_only_equals_the_language_model_and_touches_every_parameter(connector):
    model = make_model(connector)
    text = document([5, 6, 7, 8, 9, 1])
    model(pack([(text, None)])).backward()
    for part in (model.vision, model.connector, model.new_tokens):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name
    got = {n: p.grad.clone() for n, p in model.language.named_parameters()}
    model.zero_grad()
    ids = torch.tensor([text[0]])
    logits = model.language(input_ids=ids, use_cache=False).logits
    want = F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
    want.backward()
    torch.testing.assert_close(model(pack([(text, None)])), want)
    for name, parameter in model.language.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("connector", [SHUFFLE, PERCEIVER])
def test_an_image_gives_every_trained_parameter_a_gradient(connector):
    model = make_model(connector)
    k = 4 if connector is SHUFFLE else 3
    model(pack([(document([5, 6, 7, 8], True, k), picture(1)), (C, None)])).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    # start and end are embedded; the placeholder's own row is always replaced
    assert model.new_tokens.weight.grad.any(-1).tolist() == [True, True, False]
    assert all(p.grad.any() for p in model.connector.parameters())


def test_the_loss_is_the_sum_over_labels():
    model = make_model()
    batch = pack([(A, picture(1)), (C, None)], [(B, picture(2))])
    want = F.cross_entropy(model.logits(batch).flatten(0, 1), batch.labels.flatten(), reduction="sum")
    torch.testing.assert_close(model(batch), want)
    nothing = dataclasses.replace(batch, labels=torch.full_like(batch.labels, -100))
    assert model(nothing).item() == 0.0


def checkpointed_layers(model):
    layers = [*model.language.base_model.layers, *model.vision.encoder.layers]
    return [layer for layer in layers if layer.gradient_checkpointing]


@pytest.mark.parametrize("train", [{"connector": 1.0, "new_tokens": 1.0}, {"vision": 1.0, "language": 1.0}])
def test_activation_checkpointing_gives_equal_gradients(train):
    batch = pack([(A, picture(1)), (C, None)], [(B, picture(2))])
    grads = []
    for checkpointed in (False, True):
        model = make_model()
        freeze(model, train)
        if checkpointed:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                model.enable_activation_checkpointing()
            calls = [layer._gradient_checkpointing_func for layer in checkpointed_layers(model)]
            assert len(calls) == (4 if "vision" in train else 2)
            assert all(call.keywords["use_reentrant"] is False for call in calls)
        model(batch).backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert {n.split(".")[0] for n in grads[0]} == set(train)
    for name, grad in grads[0].items():
        assert grad.equal(grads[1][name]), name


def test_a_frozen_tower_keeps_no_graph():
    model = make_model()
    freeze(model, {"connector": 1.0})
    kept = []
    model.vision.post_layernorm.register_forward_hook(lambda *_: kept.append(torch.is_grad_enabled()))
    model(pack([(A, picture(1))]))
    freeze(model, {"vision": 1.0})
    model(pack([(A, picture(1))]))
    assert kept == [False, True]


def test_positions_are_those_of_the_batch():
    model = make_model()
    batch = pack([(document([5, 6, 7, 8]), None)])
    spread = dataclasses.replace(batch, positions=batch.positions * 5)
    causal = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()  # without it transformers guesses from positions
    want = model.language(
        input_ids=batch.input_ids, attention_mask=causal, position_ids=spread.positions, use_cache=False
    ).logits
    torch.testing.assert_close(model.logits(spread), want)
    assert not torch.allclose(model.logits(batch), want)


def test_a_sliding_window_is_the_language_models_own():
    model = make_model(sliding_window=3)
    text = document([5, 6, 7, 8, 9, 1, 2])
    want = model.language(input_ids=torch.tensor([text[0]]), use_cache=False).logits
    torch.testing.assert_close(model.logits(pack([(text, None)])), want)
    wide = make_model(sliding_window=None)
    assert not torch.allclose(wide.logits(pack([(text, None)])), want)


def test_bf16_stays_near_fp32():
    batch = pack([(A, picture(1)), (C, None)])
    model = make_model()
    want = model(batch)
    got = model.bfloat16()(batch)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0.03, atol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_weights_round_trip(tmp_path, tied):
    one, two = make_model(tie_word_embeddings=tied), make_model(seed=1, tie_word_embeddings=tied)
    batch = pack([(A, picture(1))])
    assert not one(batch).equal(two(batch))
    save_weights(one, tmp_path / "model.safetensors")
    load_weights(two, tmp_path / "model.safetensors")
    assert one(batch).equal(two(batch))
    load_state(two, one.state_dict(), "state")
    if tied:
        torn = dict(one.state_dict())
        torn["language.lm_head.weight"] = torch.zeros_like(torn["language.lm_head.weight"])
        with pytest.raises(DataError, match="tied"):
            load_state(two, torn, "state")


def test_weights_that_do_not_fit_are_named_and_not_loaded():
    model = make_model()
    state = {k: torch.zeros_like(v) for k, v in model.state_dict().items()}
    del state["connector.up.bias"]
    state["connector.extra"] = torch.zeros(1)
    state["new_tokens.weight"] = torch.zeros(4, 32)
    with pytest.raises(DataError) as error:
        load_state(model, state, "here")
    text = str(error.value)
    assert "1 missing: connector.up.bias" in text
    assert "1 unexpected: connector.extra" in text
    assert "new_tokens.weight (4, 32), expected (3, 32)" in text
    assert all(p.any() for p in model.connector.parameters())


def test_sharded_and_unreadable_weights_are_refused(tmp_path):
    model = make_model()
    model.new_tokens.weight.data = torch.empty(0)
    with pytest.raises(DataError, match="Gather"):
        save_weights(model, tmp_path / "w")
    (tmp_path / "bad").write_bytes(b"\x10")
    with pytest.raises(DataError, match="readable"):
        load_weights(model, tmp_path / "bad")


def test_a_tower_of_other_patches_is_refused():
    model = make_model()
    with pytest.raises(ConfigError, match=r"model\.image\.patch=8"):
        build_model(Model(image=ImageSpec(longest_edge=32, patch=4)), model.vision, model.language)
