"""The cross-attention model: its blocks against loops, what each position reads, the bare language model."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

from crossed_model import LATENTS, SPEC, gates_to, make_model, pack, picture, read_by, slowly
from data_pipeline.errors import ConfigError, DataError
from trainer.config import load_recipe
from trainer.models.adapters import attach, is_adapter, merge
from trainer.models.config import Model
from trainer.models.cross_attention import lay_out
from trainer.models.crossed import LANGUAGES
from trainer.models.freeze import count_parameters, freeze, parameter_groups
from trainer.models.masks import mask_of
from trainer.models.tuning import Tuning
from trainer.models.weights import load_state, load_weights, save_weights

P, Q, R = (picture(seed, *grid) for seed, grid in ((1, (4, 4)), (2, (1, 3)), (3, (2, 2))))

BATCHES = {
    "no image": ([[[5, 6, 7], [8]], [[9, 1, 2, 3]]], {}),
    "one token": ([[[5]]], {}),
    "an image and nothing else": ([[[P]]], {}),
    "image first": ([[[P, 5, 6, 7]]], {}),
    "several in a document": ([[[5, P, 6, 7, Q, 8, R, 9, 3]]], {}),
    "side by side": ([[[5, P, Q, 6, R, 7]], [[P, Q, R]]], {}),
    "several documents": ([[[P, 5], [6, 7], [8, Q, 9], [R, 1]]], {"length": 24}),
    "uneven rows": ([[[5, 6]], [[P, 5], [Q, R, 6]], [[7, 8, 9, 1, 2, 3, 4]]], {"length": 20}),
}


@pytest.fixture
def batch(request):
    rows, more = BATCHES[request.param]
    return pack(*rows, **more)


each_batch = pytest.mark.parametrize("batch", BATCHES, indirect=True)


@each_batch
def test_each_position_reads_the_last_picture_before_it_in_its_own_document(batch):
    features = torch.randn(max(1, len(batch.grids)), LATENTS, 8)
    media = lay_out(features, batch)
    for b in range(batch.input_ids.shape[0]):
        for t in range(batch.input_ids.shape[1]):
            want = read_by(batch, b, t)
            assert bool(media.reads[b, t]) == bool(want)
            got = media.tokens[b, media.seen[b, 0, t]]
            if want:
                assert got.equal(torch.cat([features[n] for n in want]))
            else:
                assert len(got) == media.tokens.shape[1]  # all, for the softmax; `reads` leaves it out


def test_tiles_side_by_side_are_one_picture_and_a_token_of_text_parts_them():
    batch = pack([[P, Q, R, 5], [P, 6, Q, 7]])
    assert read_by(batch, 0, 9) == [0, 1, 2]
    assert read_by(batch, 0, batch.input_ids.shape[1] - 1) == [4]
    seen = lay_out(torch.zeros(5, 1, 8), batch).seen[0, 0]
    assert seen[9].tolist() == [True] * 3 + [False] * 2
    assert seen[-1].tolist() == [False] * 4 + [True]
    # Marks that neighbours share, as in Idefics2's layout, leave two positions between placeholders.
    shared = dataclasses.replace(
        pack([[5, 5, 5, 5, 5, 5, 5, 5]]),
        image_ids=torch.tensor([[0, 1, 0, 2, 0, 0, 3, 0]]),
        grids=((1, 1),) * 3,
    )
    assert lay_out(torch.zeros(3, 1, 8), shared).seen[0, 0, -1].tolist() == [True] * 3
    parted = dataclasses.replace(shared, image_ids=torch.tensor([[0, 1, 0, 2, 0, 0, 0, 3]]))
    assert lay_out(torch.zeros(3, 1, 8), parted).seen[0, 0, -1].tolist() == [False, False, True]


@each_batch
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_block_equals_loops_over_positions_in_values_and_gradients(batch, dtype, tolerance):
    torch.manual_seed(1)
    block = make_model().cross_attention.blocks[1]
    for parameter in block.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    block.to(dtype)
    slow_block = copy.deepcopy(block).float()  # the loops in float32: their own rounding is not the question
    x = torch.randn(*batch.input_ids.shape, 32).to(dtype)
    features = torch.randn(max(1, len(batch.grids)), LATENTS, 32).to(dtype)
    found = []
    for slow in (False, True):
        inputs = [t.to(torch.float32 if slow else dtype).clone().requires_grad_() for t in (x, features)]
        if slow:
            out = slowly(slow_block, *inputs, batch)
        else:
            media = lay_out(inputs[1], batch)
            out = block(inputs[0], media.tokens, media.seen, media.reads)
        (out.float() * torch.linspace(-1, 1, 32)).sum().backward()
        parameters = (slow_block if slow else block).parameters()
        grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in (*inputs, *parameters)]
        grads[2:] = [torch.cat([g.flatten() for g in grads[2:]])]
        found.append([t.detach().float() for t in (out, *grads)])
    for quick, slow in zip(*found, strict=True):
        assert quick.isfinite().all()
        assert (quick - slow).norm() <= tolerance * slow.norm()


def bare(model, batch):
    """Last hidden states of the language model by its own forward pass, over the same sequence."""
    rows, length = batch.input_ids.shape
    mask = mask_of(
        model.see(batch.document_ids, batch.image_ids, batch.labels), rows, length, torch.device("cpu")
    )
    return model.language.base_model(
        inputs_embeds=model.read_text(batch),
        attention_mask=mask,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state


@pytest.mark.parametrize("kind", LANGUAGES)
@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_fresh_model_is_the_bare_language_model_to_the_last_bit(kind, every):
    model = make_model(kind, every, open_gates=False)
    batch = pack([[5, P, 6, 7], [Q, 8]], [[9, 1]], length=14)
    assert model._hidden(batch).equal(bare(model, batch))
    gates_to(model, 0.5)
    assert not model._hidden(batch).equal(bare(model, batch))


def test_without_a_picture_before_them_positions_are_the_bare_language_model_s_whatever_the_gates():
    model = make_model()
    batch = pack([[5, 6, 7], [8, 9, P, 1, 2]], [[3, 4, 5]], length=12)
    hidden, want = model._hidden(batch), bare(model, batch)
    before = [(0, t) for t in range(6)] + [(0, t) for t in range(10, 12)] + [(1, t) for t in range(12)]
    # The mark before the picture and the marks and words after it; rows 10, 11 are padding.
    for b, t in before:
        assert hidden[b, t].equal(want[b, t]), (b, t)
    assert all(not hidden[0, t].equal(want[0, t]) for t in range(6, 10))
    assert hidden.isfinite().all()


def test_text_only_is_the_language_model_and_every_parameter_has_a_gradient_of_zero_behind_it():
    model = make_model()
    batch = pack([[5, 6, 7, 8]])
    model(batch).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if not name.startswith(("language.", "new_tokens.")):
            assert not parameter.grad.any(), name
    logits = model.language(input_ids=batch.input_ids, use_cache=False).logits
    torch.testing.assert_close(model.logits(batch), logits)


def test_a_picture_gives_every_parameter_a_gradient_and_a_fresh_block_its_gates_alone():
    model, batch = make_model(), pack([[5, P, 6, 7, 8]])
    model(batch).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad.any() for p in model.cross_attention.parameters())
    assert all(p.grad.any() for p in model.connector.parameters())
    assert model.new_tokens.weight.grad.any(-1).all()  # the placeholder's own row too
    model = make_model(open_gates=False)
    model(batch).backward()
    with_gradient = {n for n, p in model.cross_attention.named_parameters() if p.grad.any()}
    assert with_gradient == {n for n, _ in model.cross_attention.named_parameters() if n.endswith("gate")}


def test_other_documents_later_pictures_and_padding_change_not_one_bit():
    model = make_model()
    one = pack([[5, P, 6], [7, Q, 8, 9]], [[R, 3]], length=14)
    base = model._hidden(one)
    other = picture(9, *P.grid)  # of the same size: another one pads and rounds otherwise
    other_document = pack([[4, other, 6], [7, Q, 8, 9]], [[R, 3]], length=14)
    changed = model._hidden(other_document)
    assert changed[0, 5:].equal(base[0, 5:])
    assert changed[1].equal(base[1])
    assert not changed[0, 3].equal(base[0, 3])
    later_picture = pack([[5, P, 6], [7, picture(9, *Q.grid), 8, 9]], [[R, 3]], length=14)
    changed = model._hidden(later_picture)
    assert changed[0, :7].equal(base[0, :7])
    assert not changed[0, 7].equal(base[0, 7])
    padding = dataclasses.replace(one, input_ids=one.input_ids.masked_fill(one.document_ids == 0, 9))
    real = one.document_ids > 0
    assert model._hidden(padding)[real].equal(base[real])


def test_a_packed_document_is_read_as_if_alone():
    model = make_model(
        mask="image_full"
    ).double()  # in float32 some processors round sums of other lengths apart
    documents = ([5, P, 6, Q, R, 7], [8, 9], [Q, 1, 2])
    packed = model.logits(pack(list(documents), length=26))
    start = 0
    for document in documents:
        alone = model.logits(pack([document]))
        torch.testing.assert_close(packed[:, start : start + alone.shape[1]], alone, rtol=1e-9, atol=1e-9)
        start += alone.shape[1]


@pytest.mark.parametrize(
    "train", [{"cross_attention": 1.0}, dict.fromkeys(Model(architecture="cross_attention").modules, 1.0)]
)
def test_activation_checkpointing_gives_equal_gradients(train):
    batch, grads, calls = pack([[5, P, 6], [Q, 7]], [[8, 9]]), [], []
    for checkpointed in (False, True):
        model = make_model()
        freeze(model, train)
        if checkpointed:
            model.enable_activation_checkpointing()
        counted = []
        block = model.cross_attention.blocks[0]
        block.key.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        model(batch).backward()
        calls.append(len(counted))
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert calls == [1, 2]
    assert grads[0].keys() == grads[1].keys()
    assert {n.split(".")[0] for n in grads[0]} == set(train)
    assert all(grad.equal(grads[1][name]) for name, grad in grads[0].items())


def test_the_language_model_s_weights_keep_their_names_and_all_of_them_round_trip(tmp_path):
    one, two = make_model(), make_model()
    names = {n.removeprefix("language.") for n in one.state_dict() if n.startswith("language.")}
    assert names == set(one.language.state_dict())
    assert not any("cross" in n for n in names)
    gates_to(two, 0.1)
    batch = pack([[P, 5, 6]])
    assert not one(batch).equal(two(batch))
    save_weights(one, tmp_path / "w.safetensors")
    load_weights(two, tmp_path / "w.safetensors")
    assert one(batch).equal(two(batch))


def test_the_table_and_the_groups_have_the_blocks():
    model = make_model()
    train = {"cross_attention": 0.5, "connector": 1.0}
    freeze(model, train)
    table = {c.module: c for c in count_parameters(model, train)}
    assert list(table) == ["vision", "connector", "cross_attention", "language", "new_tokens"]
    attention = 2 * 32 * 32 + 2 * 32 * 16 + 2 * 8  # query and out, key and value, their norms
    block = attention + 3 * 32 * 48 + 2 * 32 + 2
    assert table["cross_attention"].parameters == table["cross_attention"].trainable == 2 * block
    groups = {g["name"]: g for g in parameter_groups(model, train, lr=1e-3, weight_decay=0.1)}
    assert groups["cross_attention"]["lr"] == 5e-4
    flat = groups["cross_attention.no_decay"]["params"]
    assert any(p is model.cross_attention.blocks[0].mlp_gate for p in flat)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="allowed are 1 to 3"):
        make_model(every=4)
    with pytest.raises(ConfigError, match="this one is gemma"):
        make_model("gemma")
    model, batch = make_model(), pack([[P, 5, Q]])
    for wrong in (
        dataclasses.replace(batch, image_ids=batch.image_ids * (batch.image_ids < 2)),
        dataclasses.replace(batch, image_ids=batch.image_ids.flip(1)),
        dataclasses.replace(batch, image_ids=batch.image_ids * 0),
        dataclasses.replace(batch, grids=(), image_ids=batch.image_ids),
    ):
        with pytest.raises(DataError, match="each has one, in order"):
            model(wrong)


def test_a_picture_takes_one_position_whatever_its_latents():
    assert make_model().config.image_tokens == 1
    assert Model(image=SPEC).image_tokens == 4


RECIPE = Path(__file__).parents[2] / "trainer" / "recipes" / "tiny.yaml"
BLOCKS = "cross_attention: {every: 2}"
CROSSED = f"model={{architecture: cross_attention, image: {{longest_edge: 64, patch: 8}}, {BLOCKS}}}"


def test_a_recipe_trains_the_blocks_where_the_architecture_has_them():
    recipe = load_recipe(RECIPE, [CROSSED, "stages.align.train={cross_attention: 1, connector: 0.5}"])
    assert recipe.model.cross_attention.every == 2
    trained = "stages.align.train.cross_attention=1"
    assert (
        load_recipe(RECIPE, ["model.architecture=cross_attention", trained]).model.cross_attention.every == 4
    )
    with pytest.raises(ConfigError, match=r"train\.cross_attention: .* set model\.architecture to"):
        load_recipe(RECIPE, ["stages.align.train={cross_attention: 1}"])
    with pytest.raises(ConfigError, match="the architecture is autoregressive"):
        load_recipe(RECIPE, ["model.cross_attention={every: 2}"])
    with pytest.raises(ConfigError, match="nothing_else"):
        load_recipe(RECIPE, [CROSSED, "model.cross_attention.nothing_else=1"])
    with pytest.raises(ConfigError, match="this model has no cross_attention"):
        freeze(torch.nn.ModuleDict({"vision": torch.nn.Linear(1, 1)}), {"cross_attention": 1.0})


def test_a_recipe_whose_gates_stay_shut_is_refused_at_the_first_stage_that_reads_no_picture():
    with pytest.raises(ConfigError, match=r"stage 'align': the gates .* Add cross_attention to train"):
        load_recipe(RECIPE, ["model.architecture=cross_attention"])
    with pytest.raises(ConfigError, match="stage 'align': the gates"):
        load_recipe(RECIPE, [CROSSED, "stages.pretrain.train.cross_attention=1"])
    load_recipe(RECIPE, [CROSSED, "stages.align.train.cross_attention=1"])  # later stages go on from there


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_of_the_blocks_opens_their_gates_too(kind):
    model, batch = make_model(open_gates=False), pack([[5, P, 6, 7, 8]])
    train = {"cross_attention": Tuning.model_validate({kind: {"rank": 2}})}
    want = model(batch)
    attach(model, train)
    freeze(model, train)
    assert model(batch).equal(want)
    gates = {n for n, _ in model.cross_attention.named_parameters() if n.endswith("gate")}
    trained = {n for n, p in model.cross_attention.named_parameters() if p.requires_grad}
    assert gates < trained
    assert all(n in gates or is_adapter(n) for n in trained)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(batch).backward()
        optimizer.step()
    assert all(p.grad.any() for n, p in model.named_parameters() if p.requires_grad)
    merged = make_model()
    load_state(merged, merge(model.state_dict(), train), "here")
    torch.testing.assert_close(merged(batch), model(batch))
    assert not merged(batch).equal(want)
