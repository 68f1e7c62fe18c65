"""Other people's trackers, where their packages are installed: TensorBoard, Weights & Biases, MLflow.

`metrics.jsonl` stays the source of truth; a tracker gets the numbers of each step and the stage's page, and
neither arguments, environment, paths nor code. A stage's run has one id, kept in `STAGE/trackers.json`: a
resumed stage goes on in it. Nothing leaves the machine unless the user's environment says so.
"""

import importlib.util
import json
import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from data_pipeline.errors import PreflightError
from data_pipeline.manifest import write_json
from trainer.observe.sinks import Metrics, Sink

Tracker = Literal["tensorboard", "wandb", "mlflow"]

IDS = "trackers.json"

_NO_MEASURE = {"step", "ledger", "window", "row", "time"}


def chosen(named: tuple[Tracker, ...] | None) -> tuple[Tracker, ...]:
    """The trackers to write to: those that are named, else TensorBoard where it is installed.

    Raises PreflightError where one that is named is not installed.
    """
    for tracker in named or ():
        if importlib.util.find_spec(tracker) is None:
            raise PreflightError(
                f"observe.trackers names {tracker}, which is not installed.\n"
                f"  Install it:  pip install 'fovea-vlm[{_EXTRAS[tracker]}]', or take it out."
            )
    if named is None:
        return ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()
    return named


_EXTRAS = {"tensorboard": "tracking", "wandb": "wandb", "mlflow": "mlflow"}


def open_trackers(
    trackers: tuple[Tracker, ...], stage_dir: Path, run: str, page: Mapping[str, Any]
) -> list[Sink]:
    """`run`: the recipe's name; `page`: what is said about the run beside its numbers."""
    opened: list[Sink] = []
    for tracker in trackers:
        match tracker:
            case "tensorboard":
                opened.append(TensorBoardSink(stage_dir / "tensorboard"))
            case "wandb":
                opened.append(WandbSink(stage_dir, run, page))
            case "mlflow":
                opened.append(MlflowSink(stage_dir, run, page))
    return opened


class TensorBoardSink:
    """Scalars in `STAGE/tensorboard/`."""

    def __init__(self, directory: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  (optional package)

        self._writer = SummaryWriter(str(directory))

    def write(self, metrics: Metrics) -> None:
        for name, value in _numbers(metrics).items():
            self._writer.add_scalar(name, value, int(metrics["step"]))

    def add(self, step: int, metrics: Metrics) -> None:
        self.write({"step": step, **metrics})

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """A run of Weights & Biases under `STAGE/wandb/`: offline, unless WANDB_MODE says otherwise."""

    def __init__(self, stage_dir: Path, run: str, page: Mapping[str, Any]) -> None:
        import wandb  # noqa: PLC0415  (optional package)

        known = _known(stage_dir).get("wandb")
        offline = os.environ.get("WANDB_MODE", "offline") == "offline"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", run),
            name=f"{run}-{stage_dir.name}",
            id=known or _keep(stage_dir, "wandb", uuid4().hex[:12]),
            resume=None if offline else "allow",
            mode="offline" if offline else None,
            dir=stage_dir,
            config=dict(page),
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                save_code=False,
                silent=True,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
            ),
        )

    def write(self, metrics: Metrics) -> None:
        self._run.log(_numbers(metrics), step=int(metrics["step"]))

    def add(self, step: int, metrics: Metrics) -> None:
        self.write({"step": step, **metrics})

    def close(self) -> None:
        self._run.finish()


class MlflowSink:
    """A run of MLflow, in `RUN/mlflow.db` unless MLFLOW_TRACKING_URI names another place."""

    def __init__(self, stage_dir: Path, run: str, page: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Metric, Param  # noqa: PLC0415  (optional package)
        from mlflow.tracking import MlflowClient  # noqa: PLC0415

        here = f"sqlite:///{(stage_dir.parent / 'mlflow.db').absolute()}"
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", here))
        self._metric = Metric
        known = _known(stage_dir).get("mlflow")
        if known:
            self._id = known
            self._client.update_run(known, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(run)
        number = experiment.experiment_id if experiment else self._client.create_experiment(run)
        created = self._client.create_run(number, run_name=f"{run}-{stage_dir.name}")
        self._id = _keep(stage_dir, "mlflow", created.info.run_id)
        params = [Param(key, str(value)[:500]) for key, value in page.items()]
        self._client.log_batch(self._id, params=params)

    def write(self, metrics: Metrics) -> None:
        now, step = int(time.time() * 1000), int(metrics["step"])
        # Of other signs in a name, as of recall@1, it makes an error.
        named = {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in _numbers(metrics).items()}
        numbers = [self._metric(name, value, now, step) for name, value in named.items()]
        self._client.log_batch(self._id, metrics=numbers)

    def add(self, step: int, metrics: Metrics) -> None:
        self.write({"step": step, **metrics})

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _numbers(metrics: Metrics) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and math.isfinite(value) and name not in _NO_MEASURE
    }


def _known(stage_dir: Path) -> dict[str, str]:
    try:
        known = json.loads((stage_dir / IDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _keep(stage_dir: Path, tracker: Tracker, run_id: str) -> str:
    stage_dir.mkdir(parents=True, exist_ok=True)
    write_json(stage_dir / IDS, _known(stage_dir) | {tracker: run_id})
    return run_id
