"""Small backbones that the project trains itself: tokenizer, language model, vision tower.

For users without pretrained weights at hand (the demo, the tests): minutes on a CPU, one process.

The tower learns to name what stands in each patch (background, or shape and colour) from the scenes'
recorded objects; the language model learns the dataset's text. Neither ever sees a held-out sample.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Idefics2VisionConfig, MistralConfig, MistralForCausalLM
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from data_pipeline.errors import DataError
from data_pipeline.manifest import write_json
from data_pipeline.sample import Sample
from data_pipeline.stream.chat import Unusable, render
from data_pipeline.stream.collate import flat
from data_pipeline.stream.datasets import Datasets
from data_pipeline.stream.decode import Picture, decode
from data_pipeline.stream.tokens import Tokenizer, train_tokenizer
from trainer.config import Recipe
from trainer.engine.schedule import lr_factor
from trainer.models.backbones_config import LanguageBackbone, VisionBackbone
from trainer.models.vision import ATTENTION, patch_features, save_vision

FOREGROUND = 0.5
"""A pixel (-1 to 1) this far from the background's median in any channel is drawn."""


def make_backbones(recipe: Recipe, out: Path, texts: list[Path], scenes: Path) -> dict[str, float]:
    """Train and write OUT/{tokenizer,language,vision}; what was reached, also in OUT/backbones.json.

    The training splits of `texts` give the text; the samples of `scenes` carry objects. Backbones that
    were made from the same recipe and data are left as they are.
    """
    record = out / "backbones.json"
    wanted = recipe.backbones.model_dump(mode="json") | {
        "seed": recipe.seed,
        "image": recipe.model.image.model_dump(mode="json"),
        "texts": Datasets.read(texts).digest,
        "scenes": Datasets.read([scenes]).digest,
    }
    if record.exists():
        done = json.loads(record.read_text(encoding="utf-8"))
        if done["made_from"] == wanted:
            _say(f"backbones in {out} are up to date")
            return dict(done["reached"])
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    samples = [s for s in _samples(texts) if s.text]
    tokenizer = train_tokenizer((s.text for s in samples), recipe.backbones.language.vocabulary)
    tokenizer.save(out / "tokenizer")
    language_loss = _train_language(
        recipe.backbones.language, tokenizer, samples, out / "language", recipe.seed
    )
    patches_right = _train_vision(recipe, recipe.backbones.vision, scenes, out / "vision")
    reached = {
        "language_loss": round(language_loss, 4),
        "foreground_patches_right": round(patches_right, 4),
    }
    write_json(record, {"made_from": wanted, "reached": reached})
    return reached


def _train_language(
    config: LanguageBackbone, tokenizer: Tokenizer, samples: list[Sample], out: Path, seed: int
) -> float:
    """A Mistral-shaped model on the text as one stream of tokens; the mean loss of the last tenth.

    The text stands as in training, roles and all, but for the pictures: their tokens are left out.
    """
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
    ids = [t for i in order for t in _text_ids(samples[i], tokenizer)]
    length = config.sequence_length
    if len(ids) <= length:
        raise DataError(f"the dataset has {len(ids)} tokens of text, the language model needs {length}.")
    stream = torch.tensor(ids)
    model = MistralForCausalLM(
        MistralConfig(
            # A little text may give fewer entries than were asked for.
            **config.shape() | {"vocab_size": tokenizer.text_vocab_size},
            pad_token_id=tokenizer.pad_id,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
            # The usual 0.02 suits widths in the thousands. At this width attention scores would start so flat
            # that looking things up takes several times as long to learn.
            initializer_range=config.width**-0.5,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=0.01)
    draw = torch.Generator().manual_seed(seed)
    losses = []
    for _ in _steps("language model", config.steps, optimizer, config.lr):
        starts = torch.randint(0, len(stream) - length, (config.batch,), generator=draw)
        rows = torch.stack([stream[s : s + length] for s in starts])
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        losses.append(_apply(model, optimizer, loss))
    model.save_pretrained(out)
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail) if tail else float("nan")


def _text_ids(sample: Sample, tokenizer: Tokenizer) -> list[int]:
    try:
        ids = render(sample, tokenizer, 1, "all_text").input_ids
    except Unusable:
        return []
    return ids[ids < tokenizer.text_vocab_size].tolist()


def _train_vision(recipe: Recipe, config: VisionBackbone, scenes: Path, out: Path) -> float:
    """The tower under linear heads for each patch's shape, colour and place; what share of the drawn
    patches, of pictures kept apart, got shape and colour right.

    Shape and colour have a head each, so that features tell them apart: one head for "red circle" learns
    less about what red things share. Without the head for places features forget where they are.
    """
    image = recipe.model.image
    pictures, labels = _labelled_patches(scenes, recipe)
    tower = Idefics2VisionTransformer(Idefics2VisionConfig(**config.shape(image)))
    tower.set_attn_implementation(ATTENTION)
    heads = nn.ModuleDict(
        {k: nn.Linear(config.width, int(torch.cat(v).max()) + 1) for k, v in labels.items()}
    )
    probe = nn.ModuleList([tower, heads])
    optimizer = torch.optim.AdamW(probe.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=0.01)
    draw = torch.Generator().manual_seed(recipe.seed)
    held = max(1, len(pictures) // 20)  # of the training split, kept apart to measure

    def read(numbers: Sequence[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Features [P, W] of these pictures, and the labels int64[P] of their patches."""
        shown = [pictures[n] for n in numbers]
        features = patch_features(tower, *flat(shown, image), [p.grid for p in shown])
        return features, {k: torch.cat([v[n] for n in numbers]) for k, v in labels.items()}

    for _ in _steps("vision tower", config.steps, optimizer, config.lr):
        rows = torch.randint(held, len(pictures), (config.batch,), generator=draw)
        features, wanted = read(rows.tolist())
        losses = (F.cross_entropy(heads[k](features), v) for k, v in wanted.items())
        loss = sum(losses, start=torch.zeros(()))
        loss.backward()
        _apply(probe, optimizer, loss)
    tower.eval()
    with torch.no_grad():
        features, wanted = read(range(held))
        right = [heads[k](features).argmax(-1) == wanted[k] for k in ("shape", "colour")]
    save_vision(tower, out)
    drawn = wanted["shape"] > 0
    return float((right[0] & right[1])[drawn].float().mean())


def _labelled_patches(scenes: Path, recipe: Recipe) -> tuple[list[Picture], dict[str, list[torch.Tensor]]]:
    """The pictures, and per attribute and picture the labels of its patches: int64[rows * columns]."""
    image = recipe.model.image
    seen: set[str] = set()
    pictures: list[Picture] = []
    objects: list[list[dict[str, Any]]] = []
    for sample in _samples([scenes]):
        about = json.loads(sample.general_metadata or "{}")
        if not about.get("objects") or len(sample.media) != 1 or sample.media[0].media_id in seen:
            continue
        seen.add(sample.media[0].media_id)
        pictures.extend(decode(sample.image_bytes[0], image))
        objects.append(about["objects"])
    if len(pictures) < 40:
        raise DataError(
            f"{scenes} holds {len(pictures)} samples with recorded objects; the tower needs at least 40.\n"
            "  Build them:  fovea data build demo --out DIR, then pass --scenes DIR"
        )
    owners = [_owners(p, o) for p, o in zip(pictures, objects, strict=True)]
    labels = {}
    for attribute in ("shape", "colour"):
        names = sorted({o[attribute] for os in objects for o in os})
        values = [torch.tensor([0, *(1 + names.index(o[attribute]) for o in os)]) for os in objects]
        labels[attribute] = [v[owner] for v, owner in zip(values, owners, strict=True)]
    side = image.largest_grid
    places = torch.arange(side**2).view(side, side)
    labels["place"] = [places[: p.grid[0], : p.grid[1]].flatten() for p in pictures]
    return pictures, labels


def _owners(picture: Picture, objects: list[dict[str, Any]]) -> torch.Tensor:
    """int64[rows * columns]: 0 for background, else 1 + the number of the object that fills most of it."""
    (rows, columns), p = picture.grid, picture.patches.shape[-1]
    height, width = rows * p, columns * p
    blocks = torch.from_numpy(picture.patches).view(rows, columns, 3, p, p)
    pixels = blocks.permute(2, 0, 3, 1, 4).reshape(3, height, width) / 127.5 - 1
    background = pixels.flatten(1).median(dim=1).values[:, None, None]
    drawn = ((pixels - background).abs().amax(dim=0) > FOREGROUND).float()
    most = torch.full((rows, columns), 0.2)  # below this share a patch counts as background
    owner = torch.zeros(rows, columns, dtype=torch.int64)
    for n, o in enumerate(objects, start=1):
        sides = (width, height, width, height)
        x0, y0, x1, y1 = (round(float(v) * s) for v, s in zip(o["box"], sides, strict=True))
        inside = torch.zeros_like(drawn)
        inside[y0:y1, x0:x1] = drawn[y0:y1, x0:x1]
        share = inside.reshape(rows, p, columns, p).mean(dim=(1, 3))
        owner[share > most] = n
        most = torch.maximum(most, share)
    return owner.flatten()


def _samples(directories: list[Path]) -> Iterator[Sample]:
    """Every training sample."""
    datasets = Datasets.read(directories)
    for name in datasets.names("train"):
        source = datasets.source(name, "train")
        for i in range(len(source)):
            yield source[i]


def _steps(title: str, steps: int, optimizer: torch.optim.Optimizer, lr: float) -> Iterator[int]:
    """Count the steps, set each one's learning rate, and say now and then where training stands."""
    began = said = time.monotonic()
    for step in range(steps):
        factor = lr_factor(step, steps=steps, warmup_steps=20, schedule="cosine", min_ratio=0.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
        yield step
        if step + 1 == steps or time.monotonic() - said > 10:
            said = time.monotonic()
            _say(f"{title}  step {step + 1}/{steps}  {said - began:.0f} s")


def _apply(model: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> float:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
