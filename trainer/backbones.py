"""Small backbones that the project trains itself: tokenizer, language model, vision tower.

For users without pretrained weights at hand (the demo, the tests): minutes on a CPU, one process.

The tower learns to name what stands in each patch (background, or shape and colour) from the scenes'
recorded objects; the language model learns the dataset's text. Neither ever sees a held-out sample.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import Idefics2VisionConfig, MistralConfig, MistralForCausalLM
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from data_pipeline.errors import DataError
from data_pipeline.manifest import write_json
from data_pipeline.sample import Sample
from data_pipeline.stream.datasets import Datasets
from data_pipeline.stream.decode import decode
from data_pipeline.stream.tokens import Tokenizer, train_tokenizer
from trainer.config import LanguageBackbone, Recipe, VisionBackbone
from trainer.engine.schedule import lr_factor
from trainer.models.vision import patch_features, save_vision

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
    corpus = [s.text for s in _samples(texts) if s.text]
    tokenizer = train_tokenizer(corpus, recipe.backbones.language.vocabulary)
    tokenizer.save(out / "tokenizer")
    language_loss = _train_language(
        recipe.backbones.language, tokenizer, corpus, out / "language", recipe.seed
    )
    patches_right = _train_vision(recipe, recipe.backbones.vision, scenes, out / "vision")
    reached = {
        "language_loss": round(language_loss, 4),
        "foreground_patches_right": round(patches_right, 4),
    }
    write_json(record, {"made_from": wanted, "reached": reached})
    return reached


def _train_language(
    config: LanguageBackbone, tokenizer: Tokenizer, corpus: list[str], out: Path, seed: int
) -> float:
    """A Mistral-shaped model on the corpus as one stream of tokens; the mean loss of the last tenth."""
    ids = [t for text in corpus for t in (tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id)]
    length = config.sequence_length
    if len(ids) <= length:
        raise DataError(f"the dataset has {len(ids)} tokens of text, the language model needs {length}.")
    stream = torch.tensor(ids)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=tokenizer.text_vocab_size,
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.width // config.heads,
            max_position_embeddings=config.max_positions,
            sliding_window=None,
            pad_token_id=tokenizer.pad_id,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
            tie_word_embeddings=False,
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


def _train_vision(recipe: Recipe, config: VisionBackbone, scenes: Path, out: Path) -> float:
    """The tower under a linear head that names each patch; the share of foreground patches named right."""
    image = recipe.model.image
    pixels, masks, labels, classes = _labelled_patches(scenes, recipe)
    tower = Idefics2VisionTransformer(
        Idefics2VisionConfig(
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            image_size=image.side,
            patch_size=image.patch,
        )
    )
    head = nn.Linear(config.width, classes)
    probe = nn.ModuleList([tower, head])
    optimizer = torch.optim.AdamW(probe.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=0.01)
    draw = torch.Generator().manual_seed(recipe.seed)
    held = max(1, len(pixels) // 20)  # of the training split, kept apart to measure
    for _ in _steps("vision tower", config.steps, optimizer, config.lr):
        rows = torch.randint(held, len(pixels), (config.batch,), generator=draw)
        logits = head(patch_features(tower, pixels[rows], masks[rows]))
        loss = F.cross_entropy(logits.flatten(0, 1), labels[rows].flatten())
        loss.backward()
        _apply(probe, optimizer, loss)
    tower.eval()
    with torch.no_grad():
        named = head(patch_features(tower, pixels[:held], masks[:held])).argmax(-1)
    foreground = labels[:held] > 0
    save_vision(tower, out)
    return float((named[foreground] == labels[:held][foreground]).float().mean())


def _labelled_patches(scenes: Path, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """pixels float32[N, 3, S, S], masks bool[N, G, G], labels int64[N, G * G] and the number of classes."""
    image = recipe.model.image
    seen: set[str] = set()
    rows: list[tuple[torch.Tensor, torch.Tensor]] = []
    objects: list[list[dict[str, object]]] = []
    for sample in _samples([scenes]):
        about = json.loads(sample.general_metadata or "{}")
        if not about.get("objects") or len(sample.media) != 1 or sample.media[0].media_id in seen:
            continue
        seen.add(sample.media[0].media_id)
        encoded = sample.image_bytes[0]
        assert encoded is not None
        picture = decode(encoded, image)
        rows.append((picture.pixels, picture.patch_mask))
        objects.append(about["objects"])
    if len(rows) < 40:
        raise DataError(
            f"{scenes} holds {len(rows)} samples with recorded objects; the tower needs at least 40.\n"
            "  Build them:  fovea data build scenes --out DIR, then pass --scenes DIR"
        )
    names = sorted({f"{o['shape']} {o['colour']}" for os in objects for o in os})
    labels = torch.stack(
        [
            _patch_labels(pixels.permute(1, 2, 0).numpy(), o, names, image.grid)
            for (pixels, _), o in zip(rows, objects, strict=True)
        ]
    )
    pixels, masks = (torch.stack(list(t)) for t in zip(*rows, strict=True))
    return pixels, masks, labels, len(names) + 1


def _patch_labels(
    picture: np.ndarray, objects: list[dict[str, object]], names: list[str], grid: int
) -> torch.Tensor:
    """int64[G * G]: 0 for background, else 1 + the class of the object that fills most of the patch."""
    side = picture.shape[0]
    background = np.median(picture.reshape(-1, 3), axis=0)
    drawn = np.abs(picture - background).max(-1) > FOREGROUND
    labels = np.zeros((grid, grid), np.int64)
    most = np.full((grid, grid), 0.2)  # below this share a patch counts as background
    for o in objects:
        x0, y0, x1, y1 = (round(float(v) * side) for v in o["box"])  # type: ignore[attr-defined]
        inside = np.zeros_like(drawn)
        inside[y0:y1, x0:x1] = drawn[y0:y1, x0:x1]
        share = inside.reshape(grid, side // grid, grid, side // grid).mean((1, 3))
        labels[share > most] = 1 + names.index(f"{o['shape']} {o['colour']}")
        most = np.maximum(most, share)
    return torch.from_numpy(labels.reshape(-1))


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
