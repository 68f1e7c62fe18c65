"""The commands of docs/cluster.md, one block after another, as they are typed on a login node."""

import json
import re
import shutil
from pathlib import Path

from data_pipeline.manifest import sha256_file
from documentation import BLOCKS, ROOT
from trainer.engine import checkpoint

SHOWN = [b.text for b in BLOCKS if b.page == "docs/cluster.md" and b.language == "bash"]
EXAMINED = next(b.text for b in BLOCKS if b.page == "docs/cluster.md" and b.text.startswith("check "))
SMALL = {"alt": 60, "dense": 60, "dialogue": 5, "text": 20}
COUNTS = " ".join(f"sources.scenes_{kind}.count={n}" for kind, n in SMALL.items())


def test_the_page_leads_from_the_login_node_to_the_report(cluster, run_dir, tmp_path):
    home = tmp_path / "checkout"
    shutil.copytree(ROOT / "slurm", home / "slurm")
    mine = home / "runs" / "mine"
    mine.mkdir(parents=True)
    shutil.copy(run_dir / "recipe.yaml", mine)
    shutil.copytree(run_dir / "raw", mine / "raw")
    once, *blocks = SHOWN
    assert once.startswith("make setup\n")
    begin = once.removeprefix("make setup\n")

    def typed(block: str, codes: tuple[int, ...] = (0,), **env: object) -> str:
        """What it prints; with SBATCH_WAIT a job is over when its sbatch is."""
        done = cluster.command("bash", "-euc", begin + block, cwd=home, check=False, OMP_NUM_THREADS=1, **env)
        outputs = "".join(Path(f).read_text() for f in home.glob("*.out"))
        assert done.returncode in codes, done.stdout + done.stderr + outputs
        return done.stdout

    doctor, curate, train, look, evaluate, array, chain = blocks
    found = typed(doctor, codes=(0, 1))
    assert re.search(r"^ranks +n\d, n\d +ok +all 2 came$", found, re.MULTILINE)
    assert {line.split("  ")[0] for line in EXAMINED.splitlines() if line[0].islower()} <= {
        line.split("  ")[0] for line in found.splitlines()
    }
    typed(curate, SBATCH_WAIT=1, CURATE_OPTIONS=f"--slurm mem_gb=1 --slurm poll_s=0.5 {COUNTS}")
    assert (mine / "data" / "manifest.json").read_bytes() == (run_dir / "data" / "manifest.json").read_bytes()
    typed(train, SBATCH_WAIT=1)
    found, _ = checkpoint.newest(mine / "align")
    assert (found.step, found.world_size) == (8, 2)
    seen = typed(look)
    assert "pretrain: may begin, from align" in seen
    assert " 8/8 " in seen
    typed(evaluate, SBATCH_WAIT=1, SUITE="heldout quick", RANKS_PER_NODE=2)
    results = mine / "align" / "eval" / "step_000008"
    assert (results / "results.json").is_file()
    digest = sha256_file(found.path / checkpoint.COMPLETE)
    assert json.loads((results / "scenes.json").read_text())["checkpoint"]["digest"] == digest
    assert (mine / "report.html").is_file()
    (line,) = typed(array, SBATCH_WAIT=1).splitlines()  # of two checkpoints one is evaluated
    assert re.fullmatch(r"align/step_000004 +job \d+_0 submitted", line)
    earlier = mine / "align" / "checkpoints" / "step_000004" / checkpoint.COMPLETE
    page = json.loads((mine / "align" / "eval" / "step_000004" / "scenes.json").read_text())
    assert page["checkpoint"]["digest"] == sha256_file(earlier)

    said = typed(chain)
    numbers = [line.split("job ")[1].split()[0] for line in said.splitlines() if "submitted" in line]
    cluster.command("scancel", *numbers)
    shown, submitted = said.split("mkdir -p", 1)
    assert shown.count("# ") == 8
    assert submitted.count("done") == 2
    assert len(numbers) == 6
