"""Any checkpoint as something to evaluate: of a run, exported by us, or in Idefics2's Hugging Face layout."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import yaml

from data_pipeline.errors import ConfigError
from data_pipeline.manifest import sha256_file
from data_pipeline.stream.tokens import Tokenizer
from trainer.benchmarks import Opened
from trainer.distributed import World, barrier, from_main
from trainer.engine.checkpoint import COMPLETE
from trainer.evaluation.suite import Subject
from trainer.export.hf import FORMAT, load_exported
from trainer.export.importing import import_idefics2
from trainer.models.autoregressive import AutoregressiveVLM
from trainer.models.config import Model
from trainer.start import load_parts
from trainer.trained import open_trained

IDEFICS2 = "idefics2"


def open_subject(world: World, path: Path, batch: int) -> Opened:
    """The model in float32 on this rank's device (all ranks).

    Raises ConfigError where `path` is none of the three, DataError where it does not verify.
    """
    path = path.resolve()
    match _model_type(path):
        case None:
            return _of_run(world, path, batch)
        case found if found == FORMAT:
            model, tokenizer = load_exported(path), Tokenizer.load(path / "tokenizer")
            page = Model.model_validate(
                json.loads((path / "config.json").read_text(encoding="utf-8"))["model"]
            )
        case found if found == IDEFICS2:
            model, tokenizer, page = _imported(world, path)
        case found:
            raise ConfigError(
                f"{path / 'config.json'}: model_type is {found!r}; allowed are {FORMAT!r} and {IDEFICS2!r}"
            )
    model = model.float().eval().to(world.device)
    subject = Subject(model, tokenizer, page.image, page.image_tokens, batch, 0)
    return Opened(subject, path.name, _digest(path), None)


def _of_run(world: World, path: Path, batch: int) -> Opened:
    t = open_trained(path)
    subject = Subject(
        t.model.to(world.device), t.tokenizer, t.recipe.model.image, t.recipe.model.image_tokens, batch, 0
    )
    found = t.checkpoint.path
    name = f"{t.recipe.name}/{t.stage.name}/{found.name}"
    return Opened(subject, name, sha256_file(found / COMPLETE), found.parents[1] / "eval" / found.name)


def _imported(world: World, path: Path) -> tuple[AutoregressiveVLM, Tokenizer, Model]:
    """Through the layout that training starts from; it needs as much room on disk for a while."""
    directory = Path(from_main(world, tempfile.mkdtemp(prefix="fovea-eval-") if world.is_main else ""))
    try:
        if world.is_main:
            import_idefics2(path, directory / "backbones")
        barrier(world)
        text = (directory / "backbones" / "model.yaml").read_text(encoding="utf-8")
        page = Model.model_validate(yaml.safe_load(text)["model"])
        model, tokenizer = load_parts(page, directory / "backbones", "causal")
        barrier(world)
    finally:
        if world.is_main:
            shutil.rmtree(directory, ignore_errors=True)
    return model, tokenizer, page


def _model_type(path: Path) -> str | None:
    """What the directory says it is; None where it has no config.json."""
    try:
        page = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as e:
        raise ConfigError(f"{path / 'config.json'}: no JSON: {e}") from None
    return str(page.get("model_type")) if isinstance(page, dict) else "?"


def _digest(path: Path) -> str:
    """Of the weights and all that says how to read them."""
    files = sorted(p for p in path.rglob("*") if p.suffix in (".safetensors", ".json", ".jinja"))
    named = "\n".join(f"{f.relative_to(path)} {sha256_file(f)}" for f in files)
    return hashlib.sha256(named.encode()).hexdigest()
