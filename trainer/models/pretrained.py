"""A directory in transformers' format, read strictly: safetensors only, every weight accounted for."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from data_pipeline.errors import DataError

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
    faults = {
        "missing keys": sorted(info["missing_keys"]),
        "unexpected keys": sorted(k for k in info["unexpected_keys"] if not k.startswith(beside)),
        "keys of another shape": [
            f"{k} {tuple(got)}, expected {tuple(wanted)}"
            for k, got, wanted in sorted(info["mismatched_keys"])
        ],
    }
    for fault, names in faults.items():
        if names:
            raise DataError(f"{directory}: {len(names)} {fault} in the weights: {', '.join(names[:3])} ...")
    return model
