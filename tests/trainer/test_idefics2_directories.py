"""`fovea import` and `fovea export --to idefics2` against transformers itself: there, back, and refusals."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    Idefics2ForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from data_pipeline.errors import DataError
from data_pipeline.image_spec import PixelShuffle
from data_pipeline.sample import Media, Sample, Segment
from idefics2_like import LATENTS, batch_of, our_answer, publish, their_answers
from trainer.config import Recipe
from trainer.export.hf import export, load_exported
from trainer.export.idefics2 import compare_idefics2, export_idefics2
from trainer.export.importing import import_idefics2
from trainer.models.build import build_model
from trainer.models.config import Model
from trainer.run import load_parts
from trainer.trained import _probe

STAGE = {
    "name": "s",
    "init_from": "backbones",
    "train": {"connector": 1.0},
    "mixture": {"x": 1},
    "steps": 1,
    "global_batch": 1,
    "micro_batch": 1,
    "sequence_length": 64,
    "lr": 1.0,
}
QUESTIONS = ["what is it?", "where is the circle?", "is it red or blue?"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("idefics2") / "published")


@pytest.fixture(scope="module")
def imported(published: Path) -> Path:
    import_idefics2(published, published.with_name("backbones"), largest=20_000)
    return published.with_name("backbones")


@pytest.fixture
def copied(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "copied"))


def load(backbones: Path):
    page = yaml.safe_load((backbones / "model.yaml").read_text())["model"]
    model, tokenizer = load_parts(Model.model_validate(page), backbones, "causal")
    return model.eval(), tokenizer


def picture(seed: int) -> bytes:
    """64 pixels wide, as the scenes of the tiny recipe, and of several heights."""
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (64 - 9 * (seed % 4), 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "text"),
    [("mistral", {}), ("mistral", {"sliding_window": 5}), ("llama", {"tie_word_embeddings": True})],
)
def test_an_imported_model_gives_transformers_logits(tmp_path, kind, text):
    published = publish(tmp_path / "published", kind, **text)
    about = import_idefics2(published, tmp_path / "backbones")
    model, tokenizer = load(tmp_path / "backbones")
    theirs = Idefics2ForConditionalGeneration.from_pretrained(published).eval()
    assert about["parameters"] == sum(p.numel() for p in theirs.parameters())
    draw = torch.Generator().manual_seed(0)
    image, fake = tokenizer.image_id, tokenizer.image_start_id
    words = torch.randint(3, tokenizer.text_vocab_size, (12,), generator=draw).tolist()
    ids = torch.tensor([[1, *words[:3], fake, *[image] * LATENTS, fake, *words[3:], tokenizer.end_id]])
    levels = torch.randint(0, 256, (1, 1, 3, 24, 40), dtype=torch.uint8, generator=draw)
    mask = torch.ones(1, 1, 24, 40, dtype=torch.bool)
    batch = batch_of(ids, torch.ones_like(ids), ids, levels, mask, image_token=image)
    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=levels.float() / 127.5 - 1).logits
        torch.testing.assert_close(model.logits(batch), expected, rtol=1e-5, atol=1e-5)


def test_an_export_of_an_import_is_the_directory_it_came_from(published, imported, tmp_path):
    model, tokenizer = load(imported)
    export_idefics2(model, tokenizer, tmp_path / "out", largest=30_000)
    for directory in (published, tmp_path / "out"):
        assert len(list(directory.glob("*.safetensors"))) > 3

    def weights(directory: Path) -> dict[str, torch.Tensor]:
        return {k: v for f in directory.glob("*.safetensors") for k, v in load_file(f).items()}

    before, after = weights(published), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(before[k].equal(after[k]) for k in before)
    one, two = (json.loads((d / "config.json").read_text()) for d in (published, tmp_path / "out"))
    one["perceiver_config"].pop("initializer_range"), two["perceiver_config"].pop("initializer_range")
    assert one == two
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".json", ".jinja", ".safetensors"}


def question(seed: int) -> Sample:
    """About one picture or two."""
    shown = [picture(seed), picture(seed + 1)][: 1 + seed % 2]
    segments = [Segment(type="image", media=n, role="user", turn=0) for n in range(len(shown))]
    segments.append(Segment(type="text", text=QUESTIONS[seed % 3], role="user", turn=0))
    segments.append(Segment(type="text", text="-", role="assistant", turn=0))
    media = tuple(Media(media_id=str(n)) for n in range(len(shown)))
    return Sample(
        id="s", kind="instruct", source="x", segments=tuple(segments), media=media, image_bytes=tuple(shown)
    )


def test_plain_transformers_generates_the_same_tokens(imported, tmp_path):
    """Template, tokenizer, image processor and weights, all from the exported files."""
    model, tokenizer = load(imported)
    export_idefics2(model, tokenizer, tmp_path)
    samples = [question(seed) for seed in range(12)]
    ours = [our_answer(model, tokenizer, s, 24) for s in samples]
    assert their_answers(tmp_path, samples, 24) == ours
    assert their_answers(tmp_path, samples, 24, batch=5) == ours
    assert len({tuple(answer) for answer in ours}) > 6  # pictures and questions matter


def test_what_is_exported_is_opened_and_compared(imported, tmp_path):
    model, tokenizer = load(imported)
    export_idefics2(model, tokenizer, tmp_path)
    probe = _probe(Recipe.model_validate({"name": "x", "model": model.config, "stages": [STAGE]}), tokenizer)
    assert compare_idefics2(model, tmp_path, probe) < 1e-3
    state = load_file(tmp_path / "model.safetensors")
    state["model.connector.perceiver_resampler.norm.weight"][0] += 1e-6
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"1 weights differ: .*perceiver_resampler\.norm\.weight"):
        compare_idefics2(model, tmp_path, probe)
    export_idefics2(model, tokenizer, tmp_path)
    page = json.loads((tmp_path / "config.json").read_text())
    page["perceiver_config"]["rms_norm_eps"] = 0.5
    (tmp_path / "config.json").write_text(json.dumps(page))
    with pytest.raises(DataError, match="logits differ by"):
        compare_idefics2(model, tmp_path, probe)


def test_a_siglip_tower_goes_into_both_exports(imported, tmp_path):
    """With the language model and the connector of another model, as one puts a new model together."""
    backbones = Path(shutil.copytree(imported, tmp_path / "backbones"))
    shutil.rmtree(backbones / "vision")
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    siglip = SiglipVisionModel(SiglipVisionConfig(**tower, image_size=64, patch_size=8))
    siglip.save_pretrained(backbones / "vision")
    model, tokenizer = load(backbones)
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    export(weights, model.config, "causal", backbones, tmp_path / "own", {})
    again = load_exported(tmp_path / "own")
    assert all(a.equal(b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    export_idefics2(model, tokenizer, tmp_path / "theirs")
    samples = [question(seed) for seed in range(3)]
    ours = [our_answer(again, tokenizer, s, 12) for s in samples]
    assert their_answers(tmp_path / "theirs", samples, 12) == ours


def other(model, **connector):
    page = model.config.model_copy(
        update={
            "connector": model.config.connector.model_copy(update=connector) if connector else PixelShuffle()
        }
    )
    return build_model(page, model.vision, model.language, "causal", predicts_new=True)


def test_a_model_that_idefics2_cannot_say_is_refused_with_all_its_faults(imported, tmp_path):
    model, tokenizer = load(imported)
    for made, why in (
        (other(model), "connector: pixel_shuffle; it must be a perceiver"),
        (other(model, qk_norm=True), "connector.qk_norm: true"),
        (other(model, projection_width=None), "intermediate_size, 48"),
        (build_model(model.config, model.vision, model.language, "causal"), "it must be idefics2"),
    ):
        made.mask = "image_full"
        with pytest.raises(DataError, match=rf"(?s)mask: image_full; .*{re.escape(why)}"):
            export_idefics2(made, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def refuse(directory: Path, out: Path, message: str) -> None:
    with pytest.raises(DataError, match=message):
        import_idefics2(directory, out)
    assert not out.exists()


def rewritten(directory: Path, name: str, change) -> None:
    page = json.loads((directory / name).read_text())
    change(page)
    (directory / name).write_text(json.dumps(page))


def test_weights_that_do_not_fit_are_named_and_nothing_is_written(copied, tmp_path):
    index = json.loads((copied / "model.safetensors.index.json").read_text())["weight_map"]
    latents = "model.connector.perceiver_resampler.latents"
    file = copied / index[latents]
    state = load_file(file)
    state["model.extra"] = state.pop(latents)
    norm = next(k for k in state if state[k].dim() == 1)
    state[norm] = torch.ones(3)
    save_file(state, file, metadata={"format": "pt"})
    refuse(
        copied,
        tmp_path / "out",
        rf"(?s)1 missing keys: {latents}.*1 unexpected keys: model\.extra.*1 keys of another shape: {norm}",
    )


def test_pickles_and_lost_files_are_refused(copied, tmp_path):
    files = sorted(copied.glob("*.safetensors"))
    files[0].unlink()
    refuse(copied, tmp_path / "out", files[0].name)
    (copied / "model.safetensors.index.json").unlink()
    torch.save({}, copied / "pytorch_model.bin")
    for file in files[1:]:
        file.unlink()
    refuse(copied, tmp_path / "out", "pickle, which is never read")
    (copied / "model.safetensors").write_bytes(b"\x10")
    refuse(copied, tmp_path / "out", "not a readable safetensors file")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", lambda p: p.update(model_type="llava"), "'llava', allowed is 'idefics2'"),
        (
            "config.json",
            lambda p: p["text_config"].update(hidden_act="gelu"),
            "hidden_act is 'gelu', allowed",
        ),
        ("config.json", lambda p: p["text_config"].update(vocab_size=99), "vocab_size 99 and image_token_id"),
        ("config.json", lambda p: p["text_config"].update(logit_scale=2.0), "sets logit_scale = 2.0"),
        (
            "config.json",
            lambda p: p["perceiver_config"].update(hidden_act="gelu"),
            "hidden_act is 'gelu', allow",
        ),
        ("config.json", lambda p: p.update(image_token_id=3), "image_token_id 3; the tokenizer"),
        (
            "config.json",
            lambda p: p["perceiver_config"].update(attention_dropout=0.1),
            "attention_dropout is",
        ),
        ("config.json", lambda p: p["text_config"].update(hidden_size="x"), "hidden_size"),
        ("processor_config.json", lambda p: p["image_processor"].update(size={}), "longest_edge"),
        ("processor_config.json", lambda p: p.pop("image_processor"), "no preprocessor_config"),
    ],
)
def test_a_configuration_that_cannot_be_reproduced_is_refused(copied, tmp_path, name, change, message):
    rewritten(copied, name, change)
    refuse(copied, tmp_path / "out", message)


def test_a_configuration_as_older_transformers_wrote_it_is_read(copied, tmp_path):
    """The perceiver's width left out, the tower's old type, an image processor in a file of its own."""
    size = {"longest_edge": 64, "shortest_edge": 8}

    def older(page):
        page["perceiver_config"].pop("hidden_size")
        page["perceiver_config"].pop("rms_norm_eps")
        page["vision_config"]["model_type"] = page["perceiver_config"]["model_type"] = "idefics2"

    rewritten(copied, "config.json", older)
    (copied / "processor_config.json").unlink()
    (copied / "preprocessor_config.json").write_text(json.dumps({"size": size, "do_pad": True}))
    about = import_idefics2(copied, tmp_path / "out")
    assert about["model"]["connector"]["eps"] == 1e-5
    assert {k: about["model"]["image"][k] for k in size} == size
    model, _ = load(tmp_path / "out")
    theirs = Idefics2ForConditionalGeneration.from_pretrained(copied)
    assert model.connector.norm.weight.equal(theirs.model.connector.perceiver_resampler.norm.weight)


def test_a_weight_in_two_files_is_refused(copied, tmp_path):
    one, two, *_ = sorted(copied.glob("*.safetensors"))
    both = load_file(one) | load_file(two)
    save_file(both, two, metadata={"format": "pt"})
    refuse(copied, tmp_path / "out", f"stands in .*{one.name} and in .*{two.name}")


def test_a_file_is_not_overwritten(published, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        import_idefics2(published, tmp_path / "out")


def test_a_directory_with_other_files_is_not_overwritten(published, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        import_idefics2(published, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_imported_parts_that_the_recipe_does_not_fit_are_refused(imported):
    page = Model.model_validate(yaml.safe_load((imported / "model.yaml").read_text())["model"])
    wider = page.model_copy(update={"connector": page.connector.model_copy(update={"latents": 5})})
    with pytest.raises(DataError, match=r"connector\.safetensors: (?s:.*)latents"):
        load_parts(wider, imported, "causal")
