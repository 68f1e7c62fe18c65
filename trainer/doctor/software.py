"""Python, torch, DeepSpeed with its operators, and every package that Fovea's own metadata asks for."""

import hashlib
import platform
import shutil
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.ops.op_builder.all_ops import ALL_OPS
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from trainer.config import Recipe, dump_recipe
from trainer.doctor.finding import Finding

_DISTRIBUTION = "fovea-vlm"
_ROOT = Path(__file__).resolve().parents[2]
_COMPARED = (
    "torch",
    "deepspeed",
    "transformers",
    "peft",
    "tokenizers",
    "safetensors",
    "numpy",
    "pillow",
    "pyarrow",
)
_NO_OPERATORS = ("deepspeed_not_implemented",)
_INSTALL = "install Fovea anew in this environment: pip install -c constraints.txt -e ."


def facts(recipe: Recipe | None) -> dict[str, str]:
    """What must be the same on all ranks, or they would train different things."""
    page = {"recipe": hashlib.sha256(dump_recipe(recipe).encode()).hexdigest()[:8]} if recipe else {}
    return page | {
        "python": platform.python_version(),
        "fovea": f"{_version(_DISTRIBUTION) or 'not installed'}, source {_source()}",
        **{name: _version(name) or "missing" for name in _COMPARED},
    }


def python(found: str | None = None, asked: str | None = None) -> Finding:
    """The interpreter against `requires-python`."""
    found, asked = found or platform.python_version(), asked or _asked()[0]
    if found not in SpecifierSet(asked):
        return Finding(
            "python", "fail", f"{found}, Fovea needs {asked}", "make the environment anew: make setup"
        )
    return Finding("python", "ok", found)


def packages(asked: Iterable[str] | None = None) -> Iterator[Finding]:
    """The installed versions against the requirements; of optional packages those that are there."""
    wrong: list[str] = []
    old: list[str] = []
    looked = 0
    for text in _asked()[1] if asked is None else asked:
        requirement = Requirement(text)
        optional = requirement.marker is not None and "extra" in str(requirement.marker)
        if requirement.marker is not None and not optional and not requirement.marker.evaluate():
            continue
        there = _version(requirement.name)
        if there is None and optional:
            continue
        looked += 1
        if there is None or not requirement.specifier.contains(there, prereleases=True):
            line = f"{requirement.name} {there or 'missing'} (needs {requirement.specifier})"
            (old if optional else wrong).append(line)
    if wrong:
        yield Finding("packages", "fail", "; ".join(wrong), _INSTALL)
    if old:
        yield Finding("packages", "warn", "; ".join(old), f"{_INSTALL}, with the extras that you use")
    if not wrong and not old:
        yield Finding("packages", "ok", f"{looked} as required")


def torch_build() -> Finding:
    """Version, CUDA, and the backend that ranks of this machine would talk by."""
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if not dist.is_available() or not dist.is_backend_available(backend):
        return Finding(
            "torch", "fail", f"{torch.__version__} {built}, without {backend}: ranks cannot talk", _INSTALL
        )
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if backend == "nccl" else ""
    return Finding("torch", "ok", f"{torch.__version__} {built}, {backend} {nccl}".rstrip())


def deepspeed_operators() -> Finding:
    """Which operators this machine can have compiled. What a recipe needs of them its own checks say."""
    able = {name: b.is_compatible(verbose=False) for name, b in ALL_OPS.items() if name not in _NO_OPERATORS}
    said = f"{deepspeed.__version__}; operators: {', '.join(sorted(n for n, can in able.items() if can))}"
    lacking = sorted(n for n, can in able.items() if not can)
    said += f"; not here: {', '.join(lacking)}" if lacking else ""
    if missing := [what for what, there in _compiler().items() if not there]:
        return Finding(
            "deepspeed",
            "warn",
            f"{said}; none can be compiled: no {' and no '.join(missing)} on PATH",
            "load a compiler's module in slurm/env.sh, and put the environment's bin/ on PATH: offload to "
            "drives and quantised communication compile their operators at the first start",
        )
    return Finding("deepspeed", "ok", said)


def _compiler() -> dict[str, bool]:
    return {
        "C++ compiler": any(map(shutil.which, ("c++", "g++", "clang++"))),
        "ninja": bool(shutil.which("ninja")),
    }


def _asked() -> tuple[str, list[str]]:
    """(`requires-python`, requirements): of the checkout that runs, else of what is installed."""
    page = _ROOT / "pyproject.toml"
    if page.is_file():
        project: dict[str, Any] = tomllib.loads(page.read_text(encoding="utf-8"))["project"]
        extras = project.get("optional-dependencies", {}).items()
        return project["requires-python"], [
            *project["dependencies"],
            *(f"{r.partition(';')[0]}; extra == '{name}'" for name, rs in extras for r in rs),
        ]
    return metadata(_DISTRIBUTION)["Requires-Python"] or "", requires(_DISTRIBUTION) or []


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _source() -> str:
    """A digest of the code that runs: a checkout that is older on one node shows."""
    digest = hashlib.sha256()
    for package in ("data_pipeline", "trainer"):
        for path in sorted((_ROOT / package).rglob("*.py")):
            digest.update(str(path.relative_to(_ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]
