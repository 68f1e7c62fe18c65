"""A stage's own evaluation as it trains: after some checkpoints all ranks answer with the live model.

What is evaluated is a checkpoint that has its name: results stand under its digest in `STAGE/eval/step_N/`,
as `fovea eval` and `fovea watch` leave and look for them. Nothing that a step depends on is changed by it.
"""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from data_pipeline.manifest import sha256_file, write_json
from trainer.benchmarks import Asked, Opened, run_tasks
from trainer.config import Stage
from trainer.distributed import all_sum, from_main
from trainer.engine.checkpoint import COMPLETE, directory_of
from trainer.engine.oversight import Oversight
from trainer.evaluation.lockstep import Lockstep
from trainer.evaluation.suite import Subject, evaluate
from trainer.evaluation.suite_results import note_regressions, stands
from trainer.evaluation.task import tasks_of
from trainer.observe.sinks import Metrics
from trainer.observe.timeline import note_evaluation
from trainer.run import Run
from trainer.stage_stream import open_datasets


def is_due(stage: Stage, step: int) -> bool:
    """Whether the checkpoint of that step is one that the stage evaluates."""
    asked = stage.evaluate
    return asked is not None and step > 0 and (step % asked.every == 0 or step == stage.steps)


def evaluate_checkpoint(run: Run, oversight: Oversight) -> None:
    """Evaluate the checkpoint of the step that the run stands at, where that is not done (all ranks).

    Raises Stopped on all ranks where one is asked to stop: answers of benchmarks that are there stay, and the
    next call goes on from them.
    """
    assert run.stage.evaluate is not None
    name, step = run.stage.evaluate.suite, run.state.step
    suite = run.recipe.suite(name)
    path = directory_of(run.stage_dir, step)
    results = run.stage_dir / "eval" / path.name
    digest = sha256_file(path / COMPLETE) if run.world.is_main else ""
    digest, done = from_main(run.world, (digest, run.world.is_main and stands(results, suite, digest)))
    if done:
        return
    began = time.time()
    oversight.hold(())  # no sample of training is at work
    opened = _opened(run, oversight, digest)
    try:
        with _unchanged(run.engine.module, run.stage.compile):
            scores = _heldout(run, opened) if suite is None else _benchmarks(run, opened)
        if run.world.is_main:
            note_regressions(results, name, suite)
            for sink in run.sinks:
                sink.add(step, scores)
    finally:
        oversight.requests.resumed()
        if run.world.is_main:
            note_evaluation(run.stage_dir, step, began, time.time())


def _opened(run: Run, oversight: Oversight, digest: str) -> Opened:
    """The live model as something to evaluate."""
    assert run.stage.evaluate is not None
    assert run.tokenizer is not None
    model, step, page = run.engine.module, run.state.step, run.recipe.evaluation
    suite = run.recipe.suite(run.stage.evaluate.suite)

    def agree() -> None:
        oversight.enter("evaluation", step)
        oversight.decide(all_sum(run.world, *oversight.votes()))

    subject = Subject(
        model,
        run.tokenizer,
        model.config.image,
        model.config.image_tokens,
        suite.batch if suite else page.batch,
        page.max_new_tokens,
        ranks=Lockstep(run.world, agree),
        computes_on=run.world.device,
    )
    name = directory_of(run.stage_dir, step).name
    results = run.stage_dir / "eval" / name
    dtype = str(model.new_tokens.weight.dtype).removeprefix("torch.")
    return Opened(subject, f"{run.recipe.name}/{run.stage.name}/{name}", digest, results, dtype)


def _benchmarks(run: Run, opened: Opened) -> Metrics:
    """`eval/TASK/VALUE` -> value, of tasks without a sample that has no answer."""
    assert run.stage.evaluate is not None
    suite, run_dir = run.recipe.suite(run.stage.evaluate.suite), run.stage_dir.parent
    assert suite is not None
    asked = Asked(
        tasks=tasks_of(suite, run_dir), data=run_dir / suite.data, limit=suite.limit, seed=suite.seed
    )
    return _numbers({r["task"]: r["scores"] or {} for r in run_tasks(run.world, opened, asked)})


def _heldout(run: Run, opened: Opened) -> Metrics:
    """The held-out suite, which each rank answers as a whole."""
    recipe, step = run.recipe, run.state.step
    datasets = open_datasets(recipe, run.stage_dir.parent)
    scores, examples = evaluate(
        opened.subject,
        {name: datasets.source(name, "heldout") for name in datasets.names("heldout")},
        recipe.evaluation,
        sequence_length=run.stage.sequence_length,
        seed=recipe.seed,
    )
    assert opened.results is not None
    if run.world.is_main:
        about = {"stage": run.stage.name, "step": step, "checkpoint": opened.digest, "dtype": opened.dtype}
        write_json(opened.results / "examples.json", examples)
        write_json(opened.results / "results.json", {**about, **scores})
    return _numbers({f"heldout_{task}": found or {} for task, found in scores.items()})


def _numbers(scores: dict[str, dict[str, Any]]) -> Metrics:
    return {
        f"eval/{task}/{name}": value
        for task, found in scores.items()
        for name, value in found.items()
        if isinstance(value, int | float)
    }


@contextmanager
def _unchanged(model: nn.Module, compiled: bool) -> Iterator[None]:
    """Whatever is drawn inside, training draws the same afterwards; the model is in evaluation mode inside.

    Compiled layers run as they are written: what they would be compiled anew for, of other lengths and with a
    cache, counts against what torch compiles of the same code for training.
    """
    modes = {m: m.training for m in model.modules()}
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu)
