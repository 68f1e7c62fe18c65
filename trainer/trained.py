"""A checkpoint with everything needed to use it: evaluate it, export it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from data_pipeline.batch import Batch
from data_pipeline.errors import ConfigError, DataError
from data_pipeline.manifest import sha256_file, write_json
from data_pipeline.stream.chat import Rendered
from data_pipeline.stream.collate import Document, Piece, collate
from data_pipeline.stream.decode import Picture
from data_pipeline.stream.tokens import Tokenizer
from trainer.config import Recipe, Stage, load_recipe
from trainer.engine import checkpoint
from trainer.evaluation.suite import Subject, evaluate
from trainer.export.consolidate import consolidate
from trainer.export.hf import export, load_exported
from trainer.export.idefics2 import compare_idefics2, export_idefics2
from trainer.export.peft_layout import compare_adapters, idefics2_layer, write_adapters
from trainer.models.adapters import merge, split
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.models.config import Model
from trainer.models.weights import load_state
from trainer.stage_stream import open_datasets
from trainer.start import load_parts


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A verified checkpoint, the recipe and stage that made it, and its model in float32, adapters merged."""

    checkpoint: checkpoint.Checkpoint
    recipe: Recipe
    stage: Stage
    run_dir: Path
    weights: dict[str, torch.Tensor]
    model: AutoregressiveVLM
    tokenizer: Tokenizer


def open_trained(path: Path) -> Trained:
    """The checkpoint at `path`, or the newest of the stage directory `path`.

    Raises ConfigError where the path is neither, DataError where the checkpoint does not verify.
    """
    path = path.resolve()
    if path.name.startswith("step_"):
        found, stage_dir = checkpoint.verify(path), path.parents[1]
    else:
        stage_dir = path
        newest, rejected = checkpoint.newest(stage_dir)
        if newest is None and rejected:
            raise DataError("\n  ".join(["no checkpoint verifies:", *rejected]))
        if newest is None:
            raise ConfigError(
                f"{path} is no checkpoint and no stage with checkpoints.\n"
                "  Expected RUN/STAGE or RUN/STAGE/checkpoints/step_N."
            )
        found = newest
    run_dir = stage_dir.parent
    recipe = load_recipe(run_dir / "recipe.resolved.yaml")
    # The page may have changed since: what this checkpoint was trained as stands in the checkpoint.
    recipe = recipe.model_copy(update={"model": Model.model_validate(found.fingerprints["model"])})
    stage = Stage.model_validate(found.fingerprints["stage"])
    backbones = run_dir / recipe.backbones.path
    model, tokenizer = load_parts(recipe.model, backbones, stage.mask)
    if tokenizer.fingerprint != found.fingerprints["tokenizer"]:
        raise DataError(
            f"{backbones / 'tokenizer'} is not the tokenizer that {found.path} was trained with: "
            f"fingerprint {tokenizer.fingerprint[:12]}, recorded is {found.fingerprints['tokenizer'][:12]}."
        )
    weights = merge(consolidate(found.path), stage.train)
    load_state(model, weights, str(found.path))
    return Trained(
        checkpoint=found,
        recipe=recipe,
        stage=stage,
        run_dir=run_dir,
        weights=weights,
        model=model.float().eval(),
        tokenizer=tokenizer,
    )


def evaluate_trained(trained: Trained) -> dict[str, Any]:
    """Held-out scores beside their blind baselines, written to STAGE/eval/step_N/{results,examples}.json."""
    recipe, found = trained.recipe, trained.checkpoint
    datasets = open_datasets(recipe, trained.run_dir)
    scores, examples = evaluate(
        Subject(
            trained.model,
            trained.tokenizer,
            recipe.model.image,
            recipe.model.image_tokens,
            recipe.evaluation.batch,
            recipe.evaluation.max_new_tokens,
        ),
        {name: datasets.source(name, "heldout") for name in datasets.names("heldout")},
        recipe.evaluation,
        sequence_length=trained.stage.sequence_length,
        seed=recipe.seed,
    )
    digest = sha256_file(found.path / checkpoint.COMPLETE)
    results = {"stage": trained.stage.name, "step": found.step, "checkpoint": digest, **scores}
    directory = found.path.parents[1] / "eval" / found.path.name
    write_json(directory / "results.json", results)
    write_json(directory / "examples.json", examples)
    return results


def export_trained(
    trained: Trained, out: Path, to: Literal["fovea", "idefics2"] = "fovea", adapters: Path | None = None
) -> dict[str, Any]:
    """Export, reopen, and compare on a probe batch.

    `fovea`: our own format; the logits must be identical. `idefics2`: the layout of transformers; the weights
    must be identical, and the logits of its own forward pass equal to rounding.
    With `adapters`, what was trained beside the weights goes into that directory, in PEFT's layout, and `out`
    holds what stands below. Raises DataError where they are not equal, or the format cannot say this model.
    """
    probe = _probe(trained.recipe, trained.tokenizer)
    if adapters is not None:
        difference = _export_apart(trained, out, to, adapters, probe)
    elif to == "idefics2":
        export_idefics2(trained.model, trained.tokenizer, out)
        difference = compare_idefics2(trained.model, out, probe)
    else:
        difference = _export_own(trained, out, probe)
    return {
        "checkpoint": str(trained.checkpoint.path),
        "to": to,
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "tensors": len(trained.weights),
        "max_logit_diff": difference,
    }


def _export_apart(trained: Trained, out: Path, to: str, adapters: Path, probe: Batch) -> float:
    if to != "idefics2":
        raise ConfigError("--adapters needs --to idefics2: peft loads them onto a model of transformers")
    origin = str(trained.checkpoint.path)
    below, tensors = split(consolidate(trained.checkpoint.path))
    with torch.no_grad():
        logits = trained.model.logits(probe)
    write_adapters(tensors, trained.stage.train, out, adapters, idefics2_layer)
    try:
        load_state(trained.model, below, origin)
        export_idefics2(trained.model, trained.tokenizer, out)
        compare_idefics2(trained.model, out, probe)
    finally:
        load_state(trained.model, trained.weights, origin)
    return compare_adapters(logits, out, adapters, probe)


def _export_own(trained: Trained, out: Path, probe: Batch) -> float:
    about = {
        "trained": {
            "recipe": trained.recipe.name,
            "stage": trained.stage.name,
            "step": trained.checkpoint.step,
        }
    }
    export(
        trained.weights,
        trained.recipe.model,
        trained.stage.mask,
        trained.run_dir / trained.recipe.backbones.path,
        out,
        about,
    )
    reopened = load_exported(out)
    with torch.no_grad():
        difference = float((trained.model.logits(probe) - reopened.logits(probe)).abs().max())
    if difference != 0.0:
        raise DataError(f"{out}: reopened, its logits differ by {difference:g} from the checkpoint's.")
    return difference


def _probe(recipe: Recipe, tokenizer: Tokenizer) -> Batch:
    """A batch of one random document with a random picture: enough to tell two models apart."""
    draw = torch.Generator().manual_seed(recipe.seed)
    image, count = recipe.model.image, recipe.model.image_tokens
    grid = (image.largest_grid, max(1, image.largest_grid - 1))
    text = torch.randint(0, tokenizer.text_vocab_size, (32,), generator=draw).numpy()
    span = np.full(count, tokenizer.image_id)
    ids = np.concatenate([[tokenizer.image_start_id], span, [tokenizer.image_end_id], text])
    visual = (ids == tokenizer.image_id).astype(np.int64)
    document = Rendered(input_ids=ids, loss=np.zeros(len(ids), np.bool_), image_ids=visual, images=(0,))
    patches = torch.randint(
        0, 256, (grid[0] * grid[1], 3, image.patch, image.patch), dtype=torch.uint8, generator=draw
    )
    return collate(
        [[Document(Piece("probe", "probe", 0, document), (Picture.of(patches.numpy(), grid),))]],
        tokenizer=tokenizer,
        image=image,
        image_tokens=count,
        sequence_length=len(ids),
    )
