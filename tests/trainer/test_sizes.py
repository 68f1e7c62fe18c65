"""Recipes at their real size, on the meta device: every parameter counted, every stage's shapes."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, SiglipVisionConfig

from data_pipeline.errors import ConfigError
from trainer.cli import main
from trainer.config import RECIPES, load_recipe
from trainer.models.cross_attention import Media
from trainer.models.vision import patch_features
from trainer.sizes import refuse_other_backbones, sizes, skeleton


@dataclass(frozen=True)
class Published:
    """`modules`: parameters without adapters. `trained`: by stage, those of each module that are trained."""

    modules: dict[str, int]
    trained: dict[str, dict[str, int]]

    @property
    def total(self) -> int:
        return sum(self.modules.values())


def adapters(layers: int, rank: int, linear: list[tuple[int, int]], dora: bool = False) -> int:
    """Of `layers` times the linear layers (inputs, outputs): two matrices; DoRA: lengths of rows."""
    return layers * sum(rank * (i + o) + dora * o for i, o in linear)


SO400M = [(1152, 1152)] * 4 + [(1152, 4304), (4304, 1152)]
MISTRAL = [(4096, 4096)] * 2 + [(4096, 1024)] * 2 + [(4096, 14336)] * 2 + [(14336, 4096)]
NEW = {"connector": 743_219_200, "new_tokens": 2 * 3 * 4096}
LORA_8B = NEW | {"vision": adapters(27, 64, SO400M), "language": adapters(32, 64, MISTRAL)}
# A block: query and out, key and value, their norms; the gated MLP; two norms and two gates.
BLOCK = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 2 * 128 + 3 * 4096 * 14336 + 2 * 4096 + 2
BLOCKS = {"cross_attention": 8 * BLOCK}
DORA_8B = NEW | {"vision": adapters(27, 64, SO400M, True), "language": adapters(32, 64, MISTRAL, True)}

SMALL = {"connector": (9 * 1152 + 1) * 1536 + 1537 * 1536, "new_tokens": 3 * 1536}
UNFROZEN = SMALL | {"language": 513_590_784}
ADAPTED = UNFROZEN | {"vision": adapters(27, 64, SO400M)}

# Three more copies of the FFN in every second of 16 layers, and a router over the four.
SPARSE = {"language": 513_590_784 + 8 * (3 * 3 * 1536 * 4096 + 4 * 1536)}

PUBLISHED = {
    # The published model's class in transformers has 8,402,768,112: tests/trainer/test_idefics2_parity.py.
    "idefics2-8b": Published(
        modules={"vision": 417_792_240, "language": 7_241_732_096, **NEW},
        trained={"pretrain-384": LORA_8B, "pretrain-980": LORA_8B, "instruct": DORA_8B, "chat": DORA_8B},
    ),
    "idefics2-8b-cross": Published(
        modules={"vision": 417_792_240, "language": 7_241_732_096, **NEW, **BLOCKS},
        trained={
            "pretrain-384": LORA_8B | BLOCKS,
            "pretrain-980": LORA_8B | BLOCKS,
            "instruct": DORA_8B | BLOCKS,
            "chat": DORA_8B | BLOCKS,
        },
    ),
    "align-900m": Published(
        modules={"vision": 417_792_240 - (70**2 - 27**2) * 1152, "language": 513_590_784, **SMALL},
        trained={"align": SMALL, "pretrain": UNFROZEN, "instruct": ADAPTED, "adapt": ADAPTED},
    ),
    "moe-4x": Published(
        modules={"vision": 417_792_240 - (70**2 - 27**2) * 1152, **SPARSE, **SMALL},
        trained={
            "align": SMALL,
            "pretrain": UNFROZEN | SPARSE,
            "instruct": ADAPTED | SPARSE,
            "adapt": ADAPTED | SPARSE,
        },
    ),
}
"""Every recipe that ships, but tiny, whose backbones `fovea backbones` makes."""


def test_every_recipe_of_a_real_size_is_here():
    assert {p.stem for p in RECIPES.glob("*.yaml")} == {"tiny", *PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_stage_has_and_trains_exactly_these_parameters(name):
    published = PUBLISHED[name]
    found = sizes(load_recipe(name))
    assert [s.stage for s in found] == list(published.trained)
    for size in found:
        trained = {c.module: c.trainable for c in size.modules if c.trainable}
        assert trained == published.trained[size.stage], size.stage
        # What an adapter adds stands beside what it adapts.
        own = {c.module: c.parameters - (c.trainable if "rank" in c.how else 0) for c in size.modules}
        assert own == published.modules, size.stage
        assert size.plain == published.total


def test_the_totals_are_those_that_are_spoken_of():
    assert PUBLISHED["idefics2-8b"].total == 8_402_768_112
    assert PUBLISHED["idefics2-8b-cross"].total == 10_147_666_176
    assert PUBLISHED["align-900m"].total == 944_870_256
    assert PUBLISHED["moe-4x"].total == 1_397_904_240


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_forward_pass_of_each_stage_has_these_shapes(name):
    recipe = load_recipe(name)
    for stage in recipe.stages:
        with torch.device("meta"):
            model = skeleton(recipe, stage).to("meta", torch.bfloat16)  # as it trains
            grids = [(3, 4), (2, 5)]
            index = [(n, i // c, i % c) for n, (r, c) in enumerate(grids) for i in range(r * c)]
            patches = torch.empty(len(index), 3, 14, 14, dtype=torch.uint8)
            patch_index = torch.tensor(index)
            seen = patch_features(model.vision, patches, patch_index, grids)
            visual = model.connector(seen, patch_index, grids)
            ids = torch.zeros(1, 50, dtype=torch.int64)
            text = model.embed_text(ids)
            media = None
            if recipe.model.cross_attention:  # both images in one row, read by all
                read = visual.flatten(0, 1)[None]
                media = Media(read, *(torch.ones(s, dtype=torch.bool) for s in ((1, 1, 50, 128), (1, 50, 1))))
            hidden = model.decode(text, torch.ones(1, 1, 50, 50, dtype=torch.bool), ids, media=media)
            scores = model.head(hidden)
        width = model.language.config.hidden_size
        assert seen.shape == (22, 1152)
        assert visual.shape == (2, recipe.model.image.tokens(recipe.model.connector), width)
        assert text.shape == hidden.shape == (1, 50, width)
        assert scores.shape == (1, 50, 32_000 + 3 * (model.new_tokens.head is not None))


def test_flops_of_a_token_are_near_six_for_each_trained_weight_and_four_for_each_frozen():
    """The rule of thumb: 2 forward, 2 for inputs' gradients, 2 for weights'. Attention comes on top."""
    align, pretrain, *_ = sizes(load_recipe("align-900m"))
    weights = 513_590_784 - 32_000 * 1536  # the table of embeddings is looked up, not multiplied
    assert 4 * weights < align.token.total < 1.2 * 4 * weights
    assert 6 * weights < pretrain.token.total < 1.2 * 6 * weights
    assert align.image.vision * 3 > align.image.total > align.image.vision
    assert align.token.vision == 0


def backbones(room: Path, **other) -> Path:
    """config.json of what align-900m expects: its checks read no weights."""
    expected = load_recipe("align-900m").backbones.expects
    SiglipVisionConfig(**expected.vision).save_pretrained(room / "vision")
    LlamaConfig(**{**expected.language, **other}).save_pretrained(room / "language")
    return room


def test_backbones_of_the_expected_shape_are_taken(tmp_path):
    refuse_other_backbones(load_recipe("align-900m"), backbones(tmp_path))


def test_backbones_of_another_shape_are_refused_by_key(tmp_path):
    with pytest.raises(ConfigError) as e:
        refuse_other_backbones(load_recipe("align-900m"), backbones(tmp_path, num_hidden_layers=12))
    assert "config.json: num_hidden_layers is 12, the recipe's backbones.expects.language says 16" in str(
        e.value
    )
    page = json.loads((tmp_path / "vision" / "config.json").read_text())
    (tmp_path / "vision" / "config.json").write_text(json.dumps(page | {"image_size": 224}))
    with pytest.raises(ConfigError, match=r"image_size is 224, .*expects\.vision says 384"):
        refuse_other_backbones(load_recipe("align-900m"), tmp_path)


def test_a_recipe_without_expected_backbones_takes_any(tmp_path):
    refuse_other_backbones(load_recipe("tiny"), tmp_path)


def test_backbones_that_nobody_described_have_the_size_of_those_that_are_made(prepared):
    recipe = load_recipe(prepared / "recipe.yaml")
    assert recipe.backbones.expects is None
    made = {
        part: sum(t.numel() for t in load_file(prepared / "backbones" / part / "model.safetensors").values())
        for part in ("vision", "language")
    }
    counted = {m.module: m.parameters for m in sizes(recipe)[0].modules}
    assert {part: counted[part] for part in made} == made


def test_the_verb_says_which_backbones_it_assumes(capsys):
    assert main(["model", "tiny"]) == 0
    assert capsys.readouterr().out.startswith("Backbones: as `fovea backbones` makes them")
    assert main(["model", "align-900m"]) == 0
    assert "Backbones" not in capsys.readouterr().out


def test_the_verb_prints_each_stage_and_what_is_left_when_adapters_are_merged(capsys):
    assert main(["model", "align-900m"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("training FLOPs") == 4
    assert shown.count("without adapters    944,870,256\n") == 2  # two of its stages have adapters
    assert "language 513,590,784 0 - frozen" in " ".join(shown.split())
