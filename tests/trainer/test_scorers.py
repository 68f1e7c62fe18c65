"""Alignment scores against transformers' own model calls and a hand-made likelihood, at toy size."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoImageProcessor,
    AutoModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from data_pipeline.build.score.columns import read_column, score_dataset
from data_pipeline.build.score.scorer import load_embedder, load_scorer
from data_pipeline.errors import ConfigError, DataError
from data_pipeline.sample import Media, Sample, Segment
from data_pipeline.stream.datasets import Datasets
from trainer.scorers import ClipScorer, FoveaScorer, SiglipScorer
from trainer.trained import open_trained

WORDS = ["<pad>", "<eos>", "a", "red", "blue", "square", "circle", "of", "paint", "no"]


def picture(seed, size=(40, 30), mode="RGB"):
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], len(mode)), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise, mode).save(out, "PNG")
    return out.getvalue()


def save_tokenizer(path):
    backend = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    tokenizer.save_pretrained(path)
    return tokenizer


TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = TINY | {"vocab_size": len(WORDS), "max_position_embeddings": 16}
VISION = TINY | {"image_size": 32, "patch_size": 8}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    home = tmp_path_factory.mktemp("dual")
    torch.manual_seed(0)
    size = {"height": 32, "width": 32}
    siglip = SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION))
    clip = CLIPModel(
        CLIPConfig(text_config=TEXT | {"eos_token_id": 1}, vision_config=VISION, projection_dim=24)
    )
    for name, model, processor in (
        ("siglip", siglip, SiglipImageProcessor(size=size)),
        ("clip", clip, CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)),
    ):
        for p in model.parameters():  # far from the tiny default, so that texts and images differ
            torch.nn.init.normal_(p, std=0.4)
        model.eval().save_pretrained(home / name)
        processor.save_pretrained(home / name)
        save_tokenizer(home / name)
    return home


def document():
    return Sample(
        id="doc",
        kind="interleaved",
        source="s",
        segments=(
            Segment(type="text", text="a red square"),
            Segment(type="image", media=0),
            Segment(type="text", text="no paint"),
            Segment(type="image", media=1),
            Segment(type="text", text="a blue circle of paint"),
        ),
        media=(Media(media_id="x"), Media(media_id="y")),
        image_bytes=(picture(1), picture(2)),
    )


def reference(home, kind, sample):
    """transformers' own forward pass over all images and texts of the sample: cosines [images, texts]."""
    model_class, images = {
        "siglip": (SiglipModel, SiglipImageProcessor),
        "clip": (CLIPModel, CLIPImageProcessor),
    }[kind]
    model = model_class.from_pretrained(home / kind).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(home / kind)
    texts = [s.text for s in sample.segments if s.text]
    padding = {"padding": "max_length", "max_length": 16} if kind == "siglip" else {"padding": True}
    tokens = tokenizer(texts, return_tensors="pt", **padding)
    given = {"input_ids": tokens["input_ids"]}
    if kind == "clip":
        given["attention_mask"] = tokens["attention_mask"]
    opened = [Image.open(io.BytesIO(b)).convert("RGB") for b in sample.image_bytes]
    pixels = images.from_pretrained(home / kind)(images=opened, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = model(pixel_values=pixels, **given)
    return out.image_embeds @ out.text_embeds.T  # transformers normalises both


@pytest.mark.parametrize(("kind", "scorer"), [("siglip", SiglipScorer), ("clip", ClipScorer)])
def test_an_image_gets_its_best_text_as_transformers_computes_it(checkpoints, kind, scorer):
    expected = reference(checkpoints, kind, document())
    assert float((expected.max(1).values - expected.min(1).values).min()) > 1e-3
    found = list(scorer(str(checkpoints / kind)).score([document()]))
    assert [(s.column, s.id, s.media_id) for s in found] == [(kind, "doc", "x"), (kind, "doc", "y")]
    for n, score in enumerate(found):
        assert score.value == pytest.approx(float(expected[n].max()), abs=1e-5)
        assert score.segment == [0, 2, 4][int(expected[n].argmax())]


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_embeddings_are_the_towers_own(checkpoints, kind):
    embed = load_embedder(f"{kind}:{checkpoints / kind}")
    images = [Image.open(io.BytesIO(picture(n))) for n in range(3)]
    vectors = embed(images)
    pixels = AutoImageProcessor.from_pretrained(checkpoints / kind)(images=images, return_tensors="pt")
    with torch.no_grad():
        found = AutoModel.from_pretrained(checkpoints / kind).get_image_features(**pixels)
    expected = torch.nn.functional.normalize(getattr(found, "pooler_output", found), dim=-1)
    assert np.allclose(vectors, expected.numpy(), atol=1e-5)


def test_what_has_no_image_tower_embeds_nothing():
    with pytest.raises(ConfigError, match="gives no embeddings"):
        load_embedder("captions")


def test_batches_and_neighbours_change_no_score(checkpoints):
    scorer = ClipScorer(str(checkpoints / "clip"))
    many = [replace(document(), id=f"d{n}", image_bytes=(picture(n), picture(n + 1))) for n in range(11)]
    together = {(s.id, s.media_id): s.value for s in scorer.score(many)}
    alone = {(s.id, s.media_id): s.value for one in many for s in scorer.score([one])}
    assert together == pytest.approx(alone, abs=1e-5)
    assert len({round(v, 6) for v in together.values()}) > 11


def test_what_does_not_decode_or_says_nothing_has_no_score(checkpoints, monkeypatch):
    scorer = SiglipScorer(str(checkpoints / "siglip"))
    broken = replace(document(), image_bytes=(picture(1)[:200], None))
    assert list(scorer.score([broken])) == []
    silent = replace(document(), segments=(Segment(type="image", media=0), Segment(type="text", text="  ")))
    assert list(scorer.score([silent])) == []
    assert list(scorer.score([replace(document(), kind="instruct")])) == []
    monkeypatch.setattr("trainer.scorers.MAX_PIXELS", 100)
    assert list(scorer.score([document()])) == []


def test_alpha_lies_over_white(checkpoints):
    scorer = SiglipScorer(str(checkpoints / "siglip"))
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    white = Image.new("RGB", (32, 32), "white")
    values = []
    for image in (clear, white):
        out = io.BytesIO()
        image.save(out, "PNG")
        values += [s.value for s in scorer.score([replace(document(), image_bytes=(out.getvalue(), None))])]
    assert values[0] == values[1]


def test_only_safetensors_of_the_right_kind_open(checkpoints, tmp_path):
    with pytest.raises(ConfigError, match="of kind 'siglip'"):
        ClipScorer(str(checkpoints / "siglip"))
    with pytest.raises(ConfigError, match="no checkpoint"):
        SiglipScorer(str(tmp_path))
    for file in (checkpoints / "siglip").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(
        SiglipModel.from_pretrained(checkpoints / "siglip").state_dict(), tmp_path / "pytorch_model.bin"
    )
    with pytest.raises(DataError, match="does not open"):
        SiglipScorer(str(tmp_path))


@pytest.mark.slow
def test_fovea_gain_is_the_likelihood_with_the_image_less_that_with_a_blank(trained):
    scorer = FoveaScorer(str(trained / "align"))
    source = Datasets.read([trained / "data"]).source("scenes_alt", "train")
    sample = source[0]
    found = list(scorer.score([sample]))
    assert [(s.column, s.id, s.media_id) for s in found] == [("fovea", sample.id, sample.media[0].media_id)]
    assert found[0].value == pytest.approx(_by_hand(trained, sample, found[0].segment), abs=1e-4)
    many = [source[i] for i in range(20)]
    together = [s.value for s in scorer.score(many)]
    alone = [s.value for one in many for s in scorer.score([one])]
    assert together == pytest.approx(alone, abs=1e-4)
    assert list(scorer.score([replace(sample, image_bytes=(b"no image",))])) == []


def _by_hand(run, sample, segment):
    """One row at a time, token by token, from the model's logits."""
    t = open_trained(run / "align")
    from data_pipeline.batch import Batch  # noqa: PLC0415
    from data_pipeline.stream.collate import flat  # noqa: PLC0415
    from data_pipeline.stream.decode import blank, decode  # noqa: PLC0415

    k = t.tokenizer
    text = sample.segments[segment]
    head = k.encode("alt:" if text.role == "alt" else "caption:")
    tail = [*k.encode(" " + text.text.strip()), k.eos_id]
    count = t.recipe.model.image_tokens
    ids = [k.bos_id, k.image_start_id, *[k.image_id] * count, k.image_end_id, *head, *tail]
    flags = [0, 0, *[1] * count, *[0] * (len(ids) - count - 2)]
    spec = t.recipe.model.image
    (seen,) = decode(sample.image_bytes[0], spec)
    means = []
    for picture in (seen, blank(spec, seen.grid)):
        patches, patch_index = flat([picture], spec)
        batch = Batch(
            input_ids=torch.tensor([ids]),
            labels=torch.full((1, len(ids)), -100),
            positions=torch.arange(len(ids))[None],
            document_ids=torch.ones(1, len(ids), dtype=torch.int64),
            image_ids=torch.tensor([flags]),
            patches=patches,
            patch_index=patch_index,
            grids=(picture.grid,),
        )
        with torch.no_grad():
            p = t.model.logits(batch)[0].log_softmax(-1)
        start = len(ids) - len(tail)
        means.append(np.mean([float(p[i - 1, ids[i]]) for i in range(start, len(ids))]))
    return means[0] - means[1]


@pytest.mark.slow
def test_a_column_of_a_built_dataset_by_a_fovea_checkpoint(trained):
    scorer = load_scorer(f"fovea:{trained / 'instruct'}")
    counts = score_dataset(trained / "data", scorer)
    table = read_column(trained / "data", "fovea")
    assert counts["fovea"] == table.num_rows > 100
    assert scorer.version.startswith("2-")
