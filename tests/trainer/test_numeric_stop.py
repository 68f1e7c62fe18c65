"""What is not finite ends the stage on all ranks and is never saved."""


def test_a_loss_that_is_not_finite_stops_with_code_5_and_leaves_no_checkpoint(run_dir, fovea):
    done = fovea(
        "train", run_dir / "recipe.yaml", "--stage", "align", "--run", run_dir, "--nproc", 2,
        "stages.align.lr=1e30", "stages.align.checkpoint_every=50",
    )  # fmt: skip
    assert done.returncode == 5, (done.returncode, done.stderr)
    assert "is nan" in done.stderr or "is inf" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((run_dir / "align" / "checkpoints").glob("step_*"))
