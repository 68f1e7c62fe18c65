"""What happens at a step, in order."""

import time

import torch

from data_pipeline.errors import FoveaError, NumericError
from trainer.distributed import all_sum
from trainer.engine.initialize import set_lr
from trainer.engine.oversight import Oversight
from trainer.engine.requests import Stopped
from trainer.engine.saving import Saved, Saver
from trainer.engine.schedule import lr_factor
from trainer.engine.staging import staging_directory
from trainer.engine.state import TrainState
from trainer.evaluating import evaluate_checkpoint, is_due
from trainer.guarded import remembered, rewind, update
from trainer.models.moe.layer import routing_of
from trainer.observe.sinks import Metrics
from trainer.out_of_memory import explained
from trainer.run import Run


def train(run: Run, oversight: Oversight | None = None) -> None:
    """Steps until the stage is done (all ranks). A finished stage does nothing.

    Where `oversight` asks to stop, what is not saved yet is saved, and the error that says so is raised.
    """
    oversight = oversight or Oversight()
    oversight.follow(run.engine.module)
    saver = Saver(
        run.engine,
        run.stage_dir,
        run.world,
        keep=run.stage.keep_checkpoints,
        frozen=run.frozen,
        in_background=run.stage.checkpoint_async,
        staging=staging_directory(run.stage.checkpoint_staging),
        may_commit=lambda: oversight.owner,
        at_commit=oversight.committed,
        before_write=lambda step: oversight.writing(run.world, step),
    )
    if run.state.step == run.stage.steps:
        saver.tidy()
    try:
        _steps(run, oversight, saver)
    except NumericError:  # on all ranks
        _finish(run, oversight, saver)
        raise
    finally:
        saver.abandon()
        for sink in run.sinks:
            sink.close()


def _steps(run: Run, oversight: Oversight, saver: Saver) -> None:
    stage = run.stage
    saved = run.state.step
    oversight.requests.begin()
    _evaluate(run, oversight, saver)  # where an attempt before did not come to its end
    while run.state.step < stage.steps:
        began = time.perf_counter()
        try:
            with explained(run):
                metrics = train_step(run, oversight)
        except Stopped as request:
            if run.state.step > saved:
                _save(run, oversight, saver)
            raise _stopped(run, oversight, saver, request) from None
        if metrics.get("guard") == "rewind":
            oversight.enter("checkpoint", run.state.step)
            _finish(run, oversight, saver)
            rewind(run)
            saved = run.state.step
            continue
        metrics["checkpoint_stall_s"] = saver.stall()
        metrics["step_s"] = step_s = time.perf_counter() - began
        metrics["tokens_per_s"] = float(metrics["tokens"]) / step_s
        metrics |= run.figures.speed(metrics)
        for sink in run.sinks:
            sink.write(metrics)
        oversight.compare(run.world, run.state.step, run.stage_dir, stage.watchdog)
        due = run.state.step // stage.checkpoint_every > saved // stage.checkpoint_every
        # Not amid bad steps: the weights before them may be what is bad.
        if (due and not run.state.guard.rung) or run.state.step == stage.steps:
            _save(run, oversight, saver)
            saved = run.state.step
            _evaluate(run, oversight, saver)
        else:
            _there(oversight, saver.poll())
    _finish(run, oversight, saver)


def _evaluate(run: Run, oversight: Oversight, saver: Saver) -> None:
    """Evaluate the checkpoint of this step once it is there, where the stage wants it (all ranks)."""
    if not is_due(run.stage, run.state.step):
        return
    _finish(run, oversight, saver)
    try:
        evaluate_checkpoint(run, oversight)
    except Stopped as request:
        raise _stopped(run, oversight, saver, request) from None


def _stopped(run: Run, oversight: Oversight, saver: Saver, request: Stopped) -> FoveaError:
    """What ends the process, once what was begun to be saved is there (all ranks)."""
    _finish(run, oversight, saver)
    step, stage = run.state.step, run.stage
    at = f"after step {step} of {stage.steps}, which is saved" if step else "before its first step"
    return request.error(f"stage '{stage.name}' stopped {at}")


def _save(run: Run, oversight: Oversight, saver: Saver) -> None:
    """Begin a checkpoint, once the one before is there (all ranks)."""
    _finish(run, oversight, saver)
    oversight.may_save(run.world, run.state.step)
    saver.begin(run.state, run.fingerprints)
    if not saver.in_background:
        _finish(run, oversight, saver)


def _finish(run: Run, oversight: Oversight, saver: Saver) -> None:
    """Wait for the checkpoint that was begun, if any (all ranks); as long as it grows, nothing hangs."""
    _there(oversight, saver.finish(lambda: oversight.enter("checkpoint", run.state.step)))


def _there(oversight: Oversight, saved: Saved | None) -> None:
    if saved is not None:
        oversight.saved(saved.seconds)


def train_step(run: Run, oversight: Oversight | None = None) -> Metrics:
    """One optimizer step over one global batch (all ranks).

    The loss is the sum over target tokens / the number of target tokens, over all ranks and micro-batches:
    a mean of means would weigh the targets of short answers more. What keeps routers even counts beside it,
    over tokens (trainer/models/moe/routing.py), and is not in the loss that is reported.
    """
    stage, engine, world = run.stage, run.engine, run.world
    oversight = oversight or Oversight()
    step = run.state.step
    lr = stage.lr * lr_factor(
        step,
        steps=stage.steps,
        warmup_steps=stage.warmup_steps,
        schedule=stage.schedule,
        min_ratio=stage.min_lr_ratio,
        decay_share=stage.decay_share,
    )
    set_lr(engine, lr)

    oversight.enter("data", step + 1)
    batches = oversight.batches(run.stream)
    oversight.hold(batches)
    oversight.enter("communication", step + 1)
    counts = [(b.target_tokens, int((b.document_ids > 0).sum()), len(b.grids)) for b in batches]
    sums = [sum(c) for c in zip((0, 0, 0), *counts, strict=True)]
    targets, tokens, images, *votes = all_sum(world, *sums, *oversight.votes())
    oversight.decide(votes)

    # DeepSpeed divides by accumulation and averages over ranks; undo both, divide by the targets of all.
    summed = world.size * run.accumulation
    scale, beside = summed / max(1.0, targets), summed / max(1.0, tokens)
    routing = routing_of(engine.module)
    total = torch.zeros((), device=world.device)
    scale *= oversight.spoilt(world, step + 1)
    # Whatever is random in a step depends on its number alone, so a resumed run draws the same.
    torch.manual_seed((run.recipe.seed * 1_000_003 + step) * 65_537 + world.rank)
    for i, batch in enumerate(batches):
        oversight.enter("forward", step + 1)
        batch = batch.to(world.device)
        routing.begin(batch)
        loss = engine(batch)
        oversight.enter("backward", step + 1)
        engine.backward(loss * scale + routing.loss() * beside)
        total += loss.detach()
        run.figures.add(batches[i], run.stream.rows[i], engine.module.target_losses)
        if i + 1 < len(batches):
            engine.step()
    own_loss = float(total)  # here the host waits for the device
    oversight.strike(world, step + 1)
    oversight.enter("communication", step + 1)
    loss_sum, data_s, comm_s, *routed = all_sum(world, own_loss, *oversight.pace.waits(), *routing.sums())
    mean_loss = loss_sum / max(1.0, targets)
    oversight.enter("update", step + 1)
    run.gradients.check(world)  # of the first step; later ones are not watched
    norm, refused = update(run, mean_loss)

    stream = run.stream.state_dict()
    run.state = TrainState(
        step=step + 1,
        tokens=run.state.tokens + int(tokens),
        stream=stream,
        guard=remembered(run, mean_loss, norm, refused),
    )
    of_tokens, of_patches = run.stream.imbalance
    return {
        "stage": stage.name,
        "step": step + 1,
        "loss": mean_loss,
        "lr": lr,
        "grad_norm": norm,
        **({"guard": refused} if refused else {}),
        "tokens": int(tokens),
        "target_tokens": int(targets),
        "images": int(images),
        **routing.figures(routed, tokens),
        **run.figures.of_step(tokens, images),
        # Of a rank, on average, since this point of the step before.
        "data_wait_s": data_s / world.size,
        "comm_wait_s": comm_s / world.size,
        "fill": run.stream.fill,
        "token_imbalance": of_tokens,
        "patch_imbalance": of_patches,
        "skipped": sum(run.stream.skipped.values()),
        "samples": run.stream.samples,
        # Where the next step begins: `fovea data explain` starts from there.
        **{place: stream[place] for place in ("ledger", "window", "row")},
        "time": time.time(),
    }
