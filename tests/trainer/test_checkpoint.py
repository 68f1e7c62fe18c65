"""A checkpoint is whole or it is not there."""

import json
import shutil

import pytest

from data_pipeline.errors import DataError
from trainer.engine import checkpoint
from trainer.export.consolidate import consolidate


@pytest.fixture
def stage_dir(trained, tmp_path):
    """A copy of a trained stage: its two newest checkpoints, of steps 8 and 12."""
    return shutil.copytree(trained / "align", tmp_path / "align")


def test_retention_keeps_the_newest_two(stage_dir):
    frozen, *steps = [p.name for p in sorted((stage_dir / "checkpoints").iterdir())]
    assert steps == ["step_000008", "step_000012"]
    assert frozen.startswith("frozen-")


def test_retention_does_not_count_what_is_not_whole(stage_dir):
    folder = stage_dir / "checkpoints"

    def steps_after(step):
        shutil.copytree(folder / "step_000012", folder / f"step_{step:06d}")
        checkpoint.retain(folder, 2)
        return [checkpoint.step_of(p) for p in checkpoint.committed(folder)]

    assert steps_after(16) == [12, 16]
    shard = folder / "step_000016" / "rank_00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    assert steps_after(20) == [12, 16, 20]  # two to go back to, and what a resume will set aside
    shard.write_bytes(whole)
    assert steps_after(24) == [20, 24]


def test_the_newest_checkpoint_verifies_and_knows_its_step_and_ranks(stage_dir):
    found, rejected = checkpoint.newest(stage_dir)
    assert (found.step, found.world_size, rejected) == (12, 2, [])
    assert found.state.stream["step"] == 12


def test_a_file_latest_as_deepspeed_writes_it_is_not_heeded(stage_dir):
    for text in ("", "step_000008", "global_step99"):
        (stage_dir / "checkpoints" / "latest").write_text(text)
        found, rejected = checkpoint.newest(stage_dir)
        assert (found.step, rejected) == (12, [])


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "no marker", "torn marker", "open to all"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(stage_dir, damage):
    newest = stage_dir / "checkpoints" / "step_000012"
    shard = newest / "rank_00001.safetensors"
    marker = newest / checkpoint.COMPLETE
    match damage:
        case "flip":
            data = bytearray(shard.read_bytes())
            data[100] ^= 1
            shard.write_bytes(data)
        case "truncate":
            shard.write_bytes(shard.read_bytes()[:-1])
        case "delete":
            shard.unlink()
        case "no marker":
            marker.unlink()
        case "torn marker":
            marker.write_text(marker.read_text()[:-20])
        case "open to all":
            shard.chmod(0o666)
    found, rejected = checkpoint.newest(stage_dir)
    assert found.step == 8
    assert len(rejected) == 1
    assert "step_000012" in rejected[0]


def test_a_poisoned_shard_is_refused_before_it_is_opened(stage_dir, tmp_path):
    canary = tmp_path / "canary"
    poison = f"cposix\nsystem\n(S'touch {canary}'\ntR.".encode()
    newest = stage_dir / "checkpoints" / "step_000012"
    shards = list(newest.glob("*.safetensors"))
    assert len(shards) == 2
    for shard in shards:
        shard.write_bytes(poison)
    with pytest.raises(DataError):
        consolidate(newest)
    assert not canary.exists()


def test_a_marker_cannot_point_outside_its_checkpoint(stage_dir):
    newest = stage_dir / "checkpoints" / "step_000012"
    marker = newest / checkpoint.COMPLETE
    record = json.loads(marker.read_text())
    record["files"]["../../metrics.jsonl"] = {"nbytes": 1, "sha256": "0"}
    marker.write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"metrics\.jsonl is missing"):
        checkpoint.verify(newest)


def test_consolidated_weights_hold_every_parameter_frozen_ones_included(stage_dir):
    weights = consolidate(stage_dir / "checkpoints" / "step_000012")
    parts = {name.split(".")[0] for name in weights}
    assert parts == {"vision", "connector", "language", "new_tokens"}
    assert all(t.numel() for t in weights.values())
