"""What a recipe needs of this machine and of its run directory: room, stages, backbones, tokenizer, data.

It loads what trains, and is for one rank: a thousand that load transformers ask much of a file server.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer

from data_pipeline.errors import FoveaError
from data_pipeline.sample import Media, Sample, Segment
from data_pipeline.stream.chat import render
from data_pipeline.stream.datasets import Datasets
from data_pipeline.stream.decode import DecodeError, decode
from data_pipeline.stream.faults import BrokenSample
from data_pipeline.stream.source import Source
from data_pipeline.stream.tokens import Tokenizer
from trainer.config import Recipe, Stage
from trainer.doctor.disk import free_space
from trainer.doctor.finding import Check, Finding, of_error
from trainer.doctor.need import bytes_of_checkpoints
from trainer.engine.ds_config import read_ds_config
from trainer.engine.initialize import require
from trainer.models.kernels import liger_kernels
from trainer.models.moe.experts import require_backend
from trainer.sizes import refuse_other_backbones

_PROBE = "Zwei Äpfel, 3 Birnen & ein Bild:\n  «日本語» <image> <|image|> </s> 🙂"
"""Several scripts, blanks, and names of special tokens as somebody may write them."""

_OWN_TEMPLATE = "put the layout's own template there: Tokenizer.load(DIR).save(DIR)"

_SAMPLES = 3
"""Looked at in each source: the first, one in the middle, the last."""


def checks(recipe: Recipe, run: Path, ranks: int, until: float) -> Iterator[tuple[str, Check]]:
    """All of them, for one rank. `until`: of time.monotonic(), as `data` takes it."""
    yield "disk", lambda: free_space(run, bytes_of_checkpoints(recipe, run))
    yield "stages", lambda: stages(recipe, ranks)
    yield "backbones", lambda: backbones(recipe, run)
    yield "tokenizer", lambda: tokenizer(recipe, run)
    yield "data", lambda: data(recipe, run, until)


def stages(recipe: Recipe, ranks: int) -> Iterator[Finding]:
    """Whether each could be set up on so many ranks of this machine; with 1 rank the number is left open."""
    said, wrong = [], False
    for stage in recipe.stages:
        try:
            said.append(_stage(recipe, stage, ranks))
        except FoveaError as e:
            wrong = True
            yield of_error(f"stage {stage.name}", e)
    if not wrong:
        yield Finding("stages", "ok", "; ".join(said))


def _stage(recipe: Recipe, stage: Stage, ranks: int) -> str:
    together = ranks > 1
    config = read_ds_config(stage.ds_config, ranks if together else None)
    require(config)
    if stage.kernels == "liger":
        liger_kernels()
    if recipe.model.moe is not None:
        require_backend(recipe.model.moe.backend)
    accumulated = f", micro-batches a step: {stage.accumulation(ranks)}" if together else ""
    return f"{stage.name} under {stage.ds_config}{accumulated}"


def backbones(recipe: Recipe, run: Path) -> Finding:
    """Whether they are there, of the shape that the recipe expects."""
    path = run / recipe.backbones.path
    if missing := [d for d in ("vision", "language", "tokenizer") if not (path / d).is_dir()]:
        return Finding("backbones", "skipped", f"no {', no '.join(missing)} in {path} yet")
    refuse_other_backbones(recipe, path)
    return Finding("backbones", "ok", str(path))


def tokenizer(recipe: Recipe, run: Path) -> Iterator[Finding]:
    """Special tokens are one id each and out of reach of text, text survives, and the chat template beside it
    writes what training writes."""
    path = run / recipe.backbones.path / "tokenizer"
    if not path.is_dir():
        yield Finding("tokenizer", "skipped", f"{path} is not there yet")
        return
    ours = Tokenizer.load(path)  # refuses special tokens that are missing, misplaced, or met by text
    if (back := ours.decode(ours.encode(_PROBE))) != _PROBE:
        yield Finding(
            "tokenizer",
            "fail",
            f"text does not survive it: {_PROBE!r} comes back as {back!r}",
            "take a tokenizer with byte fallback, or `fovea backbones` to make one",
        )
        return
    shown = render(_dialogue(picture=True), ours, recipe.model.image_tokens, "answers")
    places = int((shown.input_ids == ours.image_id).sum())
    said = f"{len(ours):,} entries, layout {ours.layout.name}; text survives, a picture takes {places} places"
    yield Finding("tokenizer", "ok", said)
    yield _template(path, ours)


def _template(path: Path, ours: Tokenizer) -> Finding:
    if not (path / "chat_template.jinja").is_file():
        return Finding("chat template", "skipped", f"{path} has none; fovea export writes the layout's")
    # Any: its hints know no messages in parts, nor that what comes back is a mapping.
    theirs: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    sample = _dialogue(picture=False)
    messages = [{"role": s.role, "content": [{"type": "text", "text": s.text}]} for s in sample.segments]
    expected = render(sample, ours, 1, "answers").input_ids.tolist()
    try:
        found = theirs.apply_chat_template(messages, tokenize=True)["input_ids"]
    except TemplateError as e:
        said = f"{path / 'chat_template.jinja'} cannot be rendered: {type(e).__name__}: {e}"
        return Finding("chat template", "fail", said, _OWN_TEMPLATE)
    if found != expected:
        return Finding(
            "chat template",
            "fail",
            f"a dialogue of two turns: {path / 'chat_template.jinja'} gives other tokens than training "
            f"({len(found)}, not {len(expected)})",
            f"whoever serves the model would ask in another language: {_OWN_TEMPLATE}",
        )
    return Finding("chat template", "ok", f"a dialogue gives the {len(expected)} tokens that training gives")


def _dialogue(picture: bool) -> Sample:
    turns = [
        ("user", "What is it?"),
        ("assistant", "A tree."),
        ("user", "And now?"),
        ("assistant", "A house."),
    ]
    texts = [Segment(type="text", text=t, role=role, turn=n // 2) for n, (role, t) in enumerate(turns)]
    shown = [Segment(type="image", media=0, role="user", turn=0)] if picture else []
    return Sample(
        id="probe",
        kind="instruct",
        source="probe",
        segments=(*shown, *texts),
        media=(Media(media_id="probe", width=64, height=64),) if picture else (),
        image_bytes=(b"probe",) if picture else (),
    )


def data(recipe: Recipe, run: Path, until: float) -> Iterator[Finding]:
    """A few samples of each source of the stages, read and decoded; each shard that is opened is proven.

    `until`: of time.monotonic(); sources that are left then are said to be.
    """
    places = [d if "://" in d else run / d for d in recipe.data.datasets]
    if missing := [str(p) for p in places if isinstance(p, Path) and not (p / "manifest.json").is_file()]:
        yield Finding("data", "skipped", f"no dataset in {', '.join(missing)} yet")
        return
    datasets = Datasets.read(recipe.data.datasets, base=run)  # without proofs: nothing is taken on trust
    names = sorted({name for stage in recipe.stages for name in stage.mixture})
    looked, bad = 0, False
    for name in names:
        if time.monotonic() > until:
            break
        looked += 1
        try:
            for found in _spots(recipe, datasets.source(name, "train"), name):
                bad = True
                yield found
        except FoveaError as e:
            bad = True
            yield of_error(f"data {name}", e)
    left = f"no time for {', '.join(names[looked:])}" if looked < len(names) else ""
    if not bad:
        well = f"{_SAMPLES} samples each of {', '.join(names[:looked])} read and decoded" if looked else ""
        said = "; ".join(filter(None, (well, left)))
        yield Finding("data", "ok", said)


def _spots(recipe: Recipe, source: Source, name: str) -> Iterator[Finding]:
    for i in sorted({0, len(source) // 2, len(source) - 1}):
        shard, row = source.place(i)
        try:
            for encoded in source[i].image_bytes:
                if encoded is not None:
                    decode(encoded, recipe.model.image)
        except (BrokenSample, DecodeError) as e:
            yield Finding(
                f"data {name}",
                "warn",
                f"sample {i} (row {row} of {shard}): {e}",
                "training leaves such samples out and counts them; if they are many, build the source anew",
            )
