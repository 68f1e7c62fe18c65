"""The update of a step under guard: admitted or refused on all ranks together, and what follows."""

import math
from dataclasses import replace

from data_pipeline.errors import NumericError
from trainer.distributed import all_sum, barrier
from trainer.engine import checkpoint
from trainer.engine.gate import norms_by_module
from trainer.engine.guard import Action, Bad, Memory, action, judge
from trainer.engine.replicas import apart, checksums
from trainer.incidents import directory_of, note_event, write_incident
from trainer.observe.sinks import JsonlSink
from trainer.run import Run


def update(run: Run, loss: float) -> tuple[float, Action | None]:
    """The optimizer's step where loss and gradient norm are good (all ranks, which give the same `loss`).

    Returns the norm, and what was done instead of the update where they were bad. Raises NumericError where
    the ladder ends, or ranks hold other copies of the same thing.
    """
    guard, memory, world = run.stage.guard, run.state.guard, run.world
    if guard.check_every and (run.state.step + 1) % guard.check_every == 0:
        _refuse_apart(run)
    bad: Bad | None = None
    norms: dict[str, float] = {}

    def admit(norm: float) -> bool:
        nonlocal bad, norms
        bad = judge(guard, memory, loss, norm)
        (against,) = all_sum(world, float(bad is not None))
        if not against:
            run.figures.note_update(run.engine, run.state.step + 1)
            return True
        bad = bad or Bad(what="gradient norm on another rank", value=norm)
        norms = norms_by_module(run.engine.module.named_parameters())
        return False

    norm = run.gate.step(admit)
    if bad is None and not math.isfinite(
        loss
    ):  # fp16's scaling had discarded the step before it was asked for
        bad = judge(guard, memory, loss, norm)
    if bad is None:
        return norm, None
    done, step = action(guard, memory), run.state.step + 1
    if world.is_main:
        write_incident(
            run.recipe,
            run.stage,
            run.stage_dir.parent,
            step=step,
            ranks=world.size,
            bad=bad,
            action=done,
            loss=loss,
            norm=norm,
            norms=norms,
        )
    barrier(world)
    if done == "stop":
        raise NumericError(_stopped(run, f"step {step} was not taken: {bad}", step))
    if done == "skip_window":
        run.stream.skip(guard.skip_window)
    return norm, done


def remembered(run: Run, loss: float, norm: float, done: Action | None) -> Memory:
    """The guard's memory after the step."""
    step, memory = run.state.step + 1, run.state.guard
    if done:
        return memory.after_bad(step)
    return memory.after_good(run.stage.guard, step, loss, norm)


def rewind(run: Run) -> None:
    """Back to the newest checkpoint that verifies (all ranks), but for the data: it goes on where it stands,
    past the rows of the bad step and of the good ones before it. Raises NumericError where there is none."""
    bad = run.state.step
    found, _ = checkpoint.newest_for_all(run.stage_dir, run.world)
    if found is None:
        raise NumericError(
            _stopped(run, f"step {bad} was bad, and there is no checkpoint to go back to", bad)
        )
    checkpoint.load(run.engine, found, run.world)
    climbed = replace(found.state.guard, rung=run.state.guard.rung, furthest=run.state.guard.furthest)
    run.state = replace(found.state, stream=run.state.stream, guard=climbed)
    for sink in run.sinks:
        if isinstance(sink, JsonlSink):
            sink.rewind(found.step, {key: run.state.stream[key] for key in ("ledger", "window", "row")})


def _refuse_apart(run: Run) -> None:
    """Raises NumericError on all ranks where they differ in what they should share (all ranks)."""
    stream = run.stream.state_dict()
    told = {
        "step": run.state.step,
        "learning rates": [group["lr"] for group in run.engine.optimizer.param_groups],
        "place in the data": stream,
    }
    found = apart(run.world, checksums(run.engine, told))
    if not found:
        return
    step = run.state.step + 1
    if run.world.is_main:
        note_event(run.stage_dir, {"event": "ranks drifted apart", "step": step, "apart": found})
    what = ", ".join(
        f"{what} (rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))})"
        for what, ranks in found.items()
    )
    raise NumericError(
        f"stage '{run.stage.name}': before the update of step {step} not all ranks hold the same: {what}.\n"
        "  None of it was saved. Look at that rank's node (memory errors, another version, other files); the "
        "same command resumes from the newest checkpoint."
    )


def _stopped(run: Run, what: str, step: int) -> str:
    return (
        f"stage '{run.stage.name}': {what}.\n"
        f"  Its samples, and their rows as a page:  {directory_of(run.stage_dir, step)}\n"
        "  Lower lr or clip, look at them, or change the stage's guard; the same command resumes from "
        "the newest checkpoint."
    )
