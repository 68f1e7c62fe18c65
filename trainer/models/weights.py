"""All weights of a model in one safetensors file, under the names of its modules (MODULES in config.py).

Loading is strict: a weight that is missing, unknown or of another shape is an error, never a random value.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from data_pipeline.errors import DataError


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write every weight of an unsharded model once: tied ones under their first name."""
    tied = _tied(model)
    state = {k: v.detach().contiguous() for k, v in model.state_dict().items() if k not in tied}
    empty = [k for k, v in state.items() if v.numel() == 0]
    if empty:
        raise DataError(
            f"{path}: {len(empty)} weights are empty here ({', '.join(empty[:3])} ...): they are sharded. "
            "Gather them first."
        )
    save_file(state, path)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Read what `save_weights` wrote, in place. Raises DataError where file and model differ."""
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({error})") from error
    load_state(model, state, str(path))


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor], origin: str) -> None:
    """Copy named tensors into an unsharded model, strictly. `origin` names their source in errors."""
    unlike = sorted(
        k
        for k, first in _tied(model).items()
        if k in state and first in state and not state[k].equal(state[first])
    )
    names = fitting(model, {k: tuple(v.shape) for k, v in state.items()}, origin, unlike)
    wanted = model.state_dict()
    with torch.no_grad():
        for name, given in names.items():
            wanted[name].copy_(state[given])


def fitting(
    model: nn.Module, shapes: Mapping[str, tuple[int, ...]], origin: str, unlike: Sequence[str] = ()
) -> dict[str, str]:
    """Each weight of an unsharded model, tied ones under their first name, -> its name in `shapes`.

    `unlike`: tied weights that were found to have values of their own. Raises DataError where model and
    `shapes` differ.
    """
    tied = _tied(model)
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items() if k not in tied}
    given = {tied.get(k, k): k for k in shapes if tied.get(k) not in shapes}
    faults = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "of another shape": [
            f"{k} {shapes[given[k]]}, expected {wanted[k]}"
            for k in sorted(wanted.keys() & given.keys())
            if shapes[given[k]] != wanted[k]
        ],
        "unlike the weight they are tied to": list(unlike),
    }
    if any(faults.values()):
        raise DataError(
            f"{origin}: the weights do not fit this model; nothing was loaded.\n"
            + "\n".join(
                f"  {len(names)} {fault}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
                for fault, names in faults.items()
                if names
            )
            + "\n  Was the file written by a run with the same model page and backbones?"
        )
    return given


def _tied(model: nn.Module) -> dict[str, str]:
    """Further names of a shared parameter -> its first name (an lm_head tied to the embeddings)."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            tied[name] = first[id(parameter)]
    return tied
