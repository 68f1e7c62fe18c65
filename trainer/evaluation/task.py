"""A benchmark as data: which files, how it is asked, how it is scored. One YAML page each in `tasks/`.

No torch: pages and files are checked before a model is opened.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from data_pipeline.errors import ConfigError, DataError, PreflightError, nearest
from data_pipeline.manifest import sha256_file
from trainer.evaluation.config import Suite

PAGES = Path(__file__).parent / "tasks"
SHOWN = 20

Layout = Literal[
    "ai2d", "chartqa", "coco", "dataset", "docvqa", "imagenet", "karpathy", "mathvista", "mmbench", "mmmu",
    "pope", "rows", "textvqa", "vizwiz", "vqa", "vqa_rad",
]  # fmt: skip
Metric = Literal[
    "captions", "vqa", "vqa-lmms", "anls", "relaxed", "exact", "choice", "circular", "pope",
    "classification", "retrieval",
]  # fmt: skip
LIKELIHOOD = ("classification", "retrieval")
"""Metrics that rank texts by their likelihood; the others read an answer that the model wrote."""
Word = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskFile(_Strict):
    path: str = Field(
        min_length=1, description="below the data root, under the release's own name; * for several"
    )
    sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="null: not known, not checked; of several files that of their checksums, a line each",
    )

    @field_validator("path")
    @classmethod
    def _below(cls, path: str) -> str:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError("a path below the data root is wanted, without '..'")
        return path


class Part(_Strict):
    """One split of a benchmark."""

    files: Mapping[str, TaskFile] = Field(description="by the role that the layout gives them")
    split: str | None = Field(None, description="where one file holds several splits")


class Task(_Strict):
    name: str = Field(pattern=r"^[a-z0-9_]+$")
    about: Word
    layout: Layout
    evaluated: Part
    train: Part | None = Field(None, description="where examples are drawn from; null: there are none")
    form: Literal["caption", "dialogue"] = Field(
        "dialogue", description="caption: without examples, the model is asked as captions are trained"
    )
    prompt: Word = Field(
        description="{question}, {choices} and {hint} stand for the question's own; of likelihood tasks the "
        "text that is ranked, with {question} for the label or caption"
    )
    ensemble: tuple[Word, ...] = Field(
        (), description="classification: further wordings of `prompt`; a label has the mean of all its scores"
    )
    open_prompt: Word | None = Field(None, description="for a question without choices; null: `prompt`")
    stop: tuple[Word, ...] = Field((), description="an answer ends where one of these words begins")
    shots: int = Field(0, ge=0, le=8, description="examples before the question, as earlier turns")
    metric: Metric
    max_new_tokens: int = Field(32, ge=1)
    n: int | None = Field(ge=1, description="samples of the release; null: the files decide")

    @model_validator(mode="after")
    def _whole(self) -> "Task":
        if "{question}" not in self.prompt and self.metric != "captions":
            raise ValueError("prompt: {question} stands nowhere in it")
        if self.ensemble and self.metric != "classification":
            raise ValueError("ensemble: labels of a classification alone are worded several times")
        if lacking := [text for text in self.ensemble if "{question}" not in text]:
            raise ValueError(f"ensemble: {{question}} stands nowhere in {lacking[0]!r}")
        if self.shots and (self.train is None or self.metric in LIKELIHOOD):
            raise ValueError("shots: examples need a `train` part, and a task that is answered in words")
        return self

    @property
    def ranked(self) -> bool:
        return self.metric in LIKELIHOOD


def task_names() -> list[str]:
    return sorted(p.stem for p in PAGES.glob("*.yaml"))


def load_task(name: str, shots: int | None = None) -> Task:
    """The task of that name, or of the page at that path (*.yaml). Raises ConfigError with every fault."""
    path = Path(name) if name.endswith(".yaml") else PAGES / f"{name}.yaml"
    if not path.is_file():
        if name.endswith(".yaml"):
            raise ConfigError(f"{path}: no such task page")
        names = task_names()
        raise ConfigError(
            f"no task '{name}'{nearest(name, names)}\n"
            f"  Tasks: {', '.join(names)}; or a page of your own, *.yaml"
        )
    try:
        page: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(page, dict) and shots is not None:
            page = {**page, "shots": shots}
        return Task.model_validate(page)
    except yaml.YAMLError as e:
        raise ConfigError(f"{path}: no YAML: {e}") from None
    except ValidationError as e:
        faults = [f"  {'.'.join(map(str, f['loc'])) or 'page'}: {f['msg']}" for f in e.errors()]
        raise ConfigError("\n".join([f"{path}{f' with {shots} shots' if shots else ''}:", *faults])) from None


def parts(task: Task) -> list[Part]:
    """Those that a run reads: examples only where some are shown."""
    return [task.evaluated, *([task.train] if task.train and task.shots else [])]


def check_files(tasks: Iterable[Task], root: Path) -> None:
    """Raises PreflightError that names every file of every task that is missing, and where it belongs."""
    wanted: dict[Path, str] = {}
    for task in tasks:
        for part in parts(task):
            for role, file in part.files.items():
                if not paths_of(file, root):
                    wanted.setdefault(root / file.path, f"{task.name}: {role}")
    if wanted:
        missing = [f"  {path}   ({whose})" for path, whose in wanted.items()]
        raise PreflightError(
            "\n".join(
                [
                    f"{len(missing)} files or folders of benchmarks are missing. Put the release's own at:",
                    *missing,
                    "  Fovea downloads no benchmark; `fovea eval --tasks` says what each task needs.",
                ]
            )
        )


def tasks_of(suite: Suite, run_dir: Path) -> list[Task]:
    """Its tasks. Raises ConfigError where there is no such task, PreflightError where files are missing."""
    tasks = [load_task(name, suite.shots) for name in suite.tasks]
    check_files(tasks, run_dir / suite.data)
    return tasks


def paths_of(file: TaskFile, root: Path) -> list[Path]:
    if "*" in file.path:
        return sorted(root.glob(file.path))
    return [root / file.path] if (root / file.path).exists() else []


def located(part: Part, root: Path) -> dict[str, list[Path]]:
    """The files by role. Raises DataError where they are not those that their checksum names, ConfigError
    where it is that of a folder."""
    found = {role: paths_of(file, root) for role, file in part.files.items()}
    for role, file in part.files.items():
        if file.sha256 and (digest := _checksum(found[role])) != file.sha256:
            raise DataError(
                f"{root / file.path}: its sha256 is {digest}, the task page says {file.sha256}\n"
                "  Put the release's own there, or correct `sha256` in a page of your own."
            )
    return found


def _checksum(paths: Sequence[Path]) -> str:
    """The sha256 of one file; of several that of their checksums, a line each, by path."""
    if folder := next((p for p in paths if p.is_dir()), None):
        raise ConfigError(
            f"{folder}: a folder has no sha256; leave it null there, and give that of the file that lists "
            "its pictures"
        )
    digests = [sha256_file(p) for p in paths]
    return (
        digests[0] if len(digests) == 1 else sha256("".join(f"{d}\n" for d in digests).encode()).hexdigest()
    )


def check_pictures(task: Task, paths: Sequence[Path]) -> None:
    """Raises PreflightError that names the pictures (up to a score of them) that are missing."""
    missing = [p for p in dict.fromkeys(paths) if not p.is_file()]
    if missing:
        more = [f"  and {len(missing) - SHOWN:,} more"] if len(missing) > SHOWN else []
        raise PreflightError(
            "\n".join(
                [
                    f"{task.name}: {len(missing):,} of its pictures are missing. Put the release's own at:",
                    *(f"  {p}" for p in missing[:SHOWN]),
                    *more,
                ]
            )
        )


def describe(task: Task, root: Path) -> str:
    """What it is and which files it needs, for the screen."""
    lines = [f"{task.name:<20} {task.about}; n {task.n or '-'}; {task.metric}; {task.shots} shots"]
    for heading, part in (("", task.evaluated), ("with examples: ", task.train)):
        for file in part.files.values() if part else ():
            lines.append(
                f"    {'here   ' if paths_of(file, root) else 'missing'} {heading}{root / file.path}"
            )
    return "\n".join(lines)
