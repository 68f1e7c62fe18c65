"""A directory of ours that appears whole or not at all, and weights in files of bounded size inside it."""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from data_pipeline.errors import DataError

SHARD = 5 * 10**9
"""Bytes of one file of weights: transformers' own limit, which every loader of its format takes."""


@contextmanager
def replacing(out: Path, mark: str, what: str) -> Iterator[Path]:
    """A new directory to fill; it takes the place of `out` when the block ends without an error.

    Whatever dies meanwhile, `out` is what it was, or the new directory, or not there between two renames; the
    next call gives back what was there then. Raises DataError where `out` holds something, and no file `mark`
    that says it is an earlier `what`.
    """
    temporary, before = out.with_name(f"{out.name}.tmp"), out.with_name(f".{out.name}.replaced")
    if not out.exists() and (before / mark).exists():
        before.replace(out)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / mark).exists())):
        raise DataError(f"{out} is not empty and holds no {what}; name another directory.")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    shutil.rmtree(before, ignore_errors=True)
    if out.exists():
        out.replace(before)
    temporary.replace(out)
    shutil.rmtree(before, ignore_errors=True)


def write_weights(directory: Path, tensors: Iterable[tuple[str, torch.Tensor]], largest: int = SHARD) -> None:
    """model.safetensors, or several of at most `largest` bytes with model.safetensors.index.json.

    No more than one file's tensors are held. A tensor that is larger than `largest` has a file of its own.
    """
    files: list[list[str]] = []
    held: dict[str, torch.Tensor] = {}
    size = total = 0

    def close() -> None:
        save_file(held, directory / f"{len(files)}.part", metadata={"format": "pt"})
        files.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and size + tensor.nbytes > largest:
            close()
            size = 0
        held[name] = tensor.contiguous()
        size += tensor.nbytes
        total += tensor.nbytes
    close()
    if len(files) == 1:
        (directory / "0.part").replace(directory / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files):
        file = f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        (directory / f"{number}.part").replace(directory / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
