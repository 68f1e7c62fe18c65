"""A directory in transformers' format, read strictly: safetensors only, every weight accounted for."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from data_pipeline.errors import DataError
from trainer.models.stored import Stored, StoredWeights

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_config(directory: Path) -> dict[str, Any]:
    """config.json. Raises DataError where there is none that can be read."""
    path = directory / "config.json"
    if not path.is_file():
        raise DataError(f"{directory}: no config.json; expected a directory in transformers' format")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise DataError(f"{path}: not JSON ({e})") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected an object")
    return found


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of one model: those of its index, or the only one.

    Raises DataError where a file of the index is missing, where there is none, or where they are pickles.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise DataError(f"{index}: no index of weights ({e!r})") from None
        # The index comes with the weights: a name in it may point anywhere.
        if wrong := [n for n in names if Path(n).name != n or not n.endswith(".safetensors")]:
            raise DataError(f"{index}: {wrong[0]!r} is no name of a safetensors file beside it")
        if missing := [n for n in names if not (directory / n).is_file()]:
            raise DataError(f"{directory}: {len(missing)} files of the index are missing: {missing[0]} ...")
        return [directory / n for n in names]
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    pickles = sorted(p.name for p in directory.iterdir() if p.suffix in _PICKLES)
    raise DataError(
        f"{directory}: no model.safetensors and no model.safetensors.index.json"
        + (f"; {pickles[0]} is a pickle, which is never read. Convert it to safetensors." if pickles else "")
    )


def read_pretrained(kind: Any, directory: Path, beside: tuple[str, ...] = (), **arguments: Any) -> Any:
    """`kind.from_pretrained(directory)`. Weights whose names begin with one of `beside` may be left over.

    Raises DataError where weights are missing, unknown or of another shape.
    """
    weight_files(directory)
    try:
        model, info = kind.from_pretrained(
            directory,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported like the others; else it raises without their names
            **arguments,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as e:
        raise DataError(f"{directory}: transformers cannot load it:\n  {e}") from e
    _refuse(
        directory,
        info["missing_keys"],
        (k for k in info["unexpected_keys"] if not k.startswith(beside)),
        info["mismatched_keys"],
    )
    return model


def pretrained_weights(
    model: nn.Module, directory: Path, beside: tuple[str, ...] = (), prefix: str = ""
) -> dict[str, Stored]:
    """The weights of `directory` under the names of `model`, unread; a `prefix` of theirs is left out.

    Faults are those of `read_pretrained`. A weight that `model` ties to an earlier one may be there or not.
    """
    found = {n.removeprefix(prefix): w for n, w in StoredWeights(weight_files(directory)).all().items()}
    wanted = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    own = {n for n, _ in (*model.named_parameters(), *model.named_buffers())}
    tied = wanted.keys() - own
    _refuse(
        directory,
        wanted.keys() - tied - found.keys(),
        (n for n in found.keys() - wanted.keys() if not n.startswith(beside)),
        [(n, found[n].shape, wanted[n]) for n in found.keys() & wanted.keys() if found[n].shape != wanted[n]],
    )
    return {n: found[n] for n in wanted.keys() - tied}


def _refuse(
    directory: Path,
    missing: Iterable[str],
    unexpected: Iterable[str],
    mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]],
) -> None:
    faults = {
        "missing keys": sorted(missing),
        "unexpected keys": sorted(unexpected),
        "keys of another shape": [
            f"{k} {tuple(got)}, expected {tuple(wanted)}" for k, got, wanted in sorted(mismatched)
        ],
    }
    for fault, names in faults.items():
        if names:
            raise DataError(f"{directory}: {len(names)} {fault} in the weights: {', '.join(names[:3])} ...")
