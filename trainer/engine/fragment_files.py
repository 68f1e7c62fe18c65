"""Fragments of tensors in safetensors files, one file a rank: written and hashed in one pass, read by any
number of ranks.

A file's metadata say where in its whole, flattened tensor each fragment begins. What is read of a tensor is
put together from the fragments that overlap with it.

A tensor's sums are taken over the bits of its elements, and do not depend on how it was cut: they tell that
what came back together is what was cut up.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from data_pipeline.errors import DataError

Sums = tuple[int, int]
"""Of the elements' bits, and of their products with the elements' numbers from 1: both modulo 2^64."""

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CHUNK = 1 << 20
"""Elements that are summed, and bytes that are written, at once: few enough for a processor's cache."""


def write(
    path: Path,
    fragments: Mapping[str, tuple[int, torch.Tensor]],
    wrote: Callable[[int], object] = lambda nbytes: None,
    sync: bool = True,
) -> dict[str, Any]:
    """Key -> (where it begins, values, 1-D), into the file `path`; with `sync` on disk on return.

    `wrote` is told of each piece that was handed to the system, in bytes.
    Returns its `nbytes` and `sha256`, and of each fragment dtype, length and sums.
    """
    largest_first = sorted(fragments, key=lambda key: (-fragments[key][1].element_size(), key))
    header: dict[str, Any] = {
        "__metadata__": {"starts": json.dumps({key: fragments[key][0] for key in largest_first})}
    }
    end = 0
    for key in largest_first:
        values = fragments[key][1]
        begin, end = end, end + values.numel() * values.element_size()
        header[key] = {
            "dtype": _DTYPES[values.dtype],
            "shape": [values.numel()],
            "data_offsets": [begin, end],
        }
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    sha = hashlib.sha256()
    nbytes = 0
    with private(path) as f:
        data = _pieces(fragments[key][1] for key in largest_first)
        begins: tuple[bytes | memoryview, ...] = (len(head).to_bytes(8, "little"), head)
        for piece in chain(begins, data):
            sha.update(piece)
            nbytes += f.write(piece)
            wrote(len(piece))
        f.flush()
        if sync:
            os.fsync(f.fileno())
    about = {
        key: {"dtype": _DTYPES[v.dtype], "length": v.numel(), "sums": sums_of(v, start)}
        for key, (start, v) in fragments.items()
    }
    return {"nbytes": nbytes, "sha256": sha.hexdigest(), "fragments": about}


def private(path: Path) -> IO[bytes]:
    """A new file for nobody but its owner: what others may write to is refused when it is read."""
    return open(path, "wb", opener=lambda p, flags: os.open(p, flags, 0o600))


def sums_of(values: torch.Tensor, start: int) -> Sums:
    """The share that the elements from `start` on have in the sums of their tensor."""
    bits = _bytes(values).view(f"<u{values.element_size()}")
    plain, weighed = 0, 0
    for at in range(0, len(bits), _CHUNK):
        chunk = bits[at : at + _CHUNK].astype(np.uint64)
        first = start + at + 1
        plain += int(chunk.sum(dtype=np.uint64))
        chunk *= np.arange(first, first + len(chunk), dtype=np.uint64)
        weighed += int(chunk.sum(dtype=np.uint64))
    return plain % 2**64, weighed % 2**64


def added(sums: Sequence[Sums]) -> str:
    """The sums of a whole tensor, of those of all its fragments: 32 hexadecimal digits."""
    return "".join(f"{sum(s) % 2**64:016x}" for s in zip(*sums, strict=True))


class FragmentFiles:
    """Tensors whose fragments stand in `files`. Where `near` says in which file to look first, a reader that
    needs one file's fragments opens no more than that."""

    def __init__(self, files: Sequence[Path], near: int = 0) -> None:
        by_distance = sorted(range(len(files)), key=lambda i: (abs(i - near), i))
        self._unopened = [files[i] for i in reversed(by_distance)]
        self._found: dict[str, list[tuple[int, int, Any]]] = {}

    def read(self, key: str, start: int, length: int) -> torch.Tensor:
        """Elements `start` to `start + length` of the flattened tensor. Raises DataError where some stand in
        no file."""
        while True:
            pieces, at = [], start
            for begin, end, file in self._found.get(key, []):
                if begin <= at < end and at < start + length:
                    stop = min(end, start + length)
                    pieces.append(file.get_slice(key)[at - begin : stop - begin])
                    at = stop
            if at == start + length:
                return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            if not self._unopened:
                raise DataError(f"elements {at} to {start + length} of {key} stand in no file.")
            self._open(self._unopened.pop())

    def _open(self, path: Path) -> None:
        try:
            file = safe_open(path, "pt").__enter__()  # it stays open, and mapped, as long as this object
            starts = json.loads((file.metadata() or {})["starts"])
            for key, start in starts.items():
                (length,) = file.get_slice(key).get_shape()
                self._found.setdefault(key, []).append((start, start + length, file))
                self._found[key].sort(key=lambda fragment: fragment[:2])
        except (OSError, SafetensorError, ValueError, KeyError) as e:
            raise DataError(f"{path} does not hold fragments of tensors: {e}.") from None


def _bytes(values: torch.Tensor) -> np.ndarray:
    return values.detach().cpu().contiguous().view(torch.uint8).numpy()


def _pieces(tensors: Iterator[torch.Tensor]) -> Iterator[memoryview]:
    for values in tensors:
        view = _bytes(values).data
        for at in range(0, len(view), _CHUNK):
            yield view[at : at + _CHUNK]
