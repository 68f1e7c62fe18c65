"""Real photographs, radiographs and textbook figures: from their files to scores beside the blind ones."""

import json
from pathlib import Path

import pytest

from trainer.evaluation.task import load_task

REAL = (Path(__file__).parents[2] / "../shared/realdata").resolve()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/realdata beside the repository"),
]


def as_coco(records: list[dict], path: Path) -> None:
    """Their own lists of captions, in COCO's annotation format."""
    images = [{"id": i, "file_name": r["file"]} for i, r in enumerate(records)]
    annotations = [
        {"id": 100 * i + k, "image_id": i, "caption": c}
        for i, r in enumerate(records)
        for k, c in enumerate(r["captions"])
    ]
    path.write_text(json.dumps({"images": images, "annotations": annotations}), encoding="utf-8")


@pytest.fixture
def pages(tmp_path: Path) -> list[Path]:
    """Three task pages over one data root."""
    root = tmp_path / "data"
    root.mkdir()
    for name in ("coco_cc", "vqa_rad", "openstax_astronomy"):
        (root / name).symlink_to(REAL / name)
    as_coco(json.loads((REAL / "coco_cc/captions.json").read_text("utf-8")), root / "coco.json")
    figures = json.loads((REAL / "openstax_astronomy/captions.json").read_text("utf-8"))
    as_coco([{"file": f["file"], "captions": [f["caption"]]} for f in figures], root / "astronomy.json")
    captions = load_task("coco_captions").model_dump(mode="json")
    radiology = load_task("vqa_rad").model_dump(mode="json")

    def files(annotations: str, images: str) -> dict:
        return {"files": {"annotations": {"path": annotations}, "images": {"path": images}}}

    wanted = [
        {**captions, "name": "coco_cc", "layout": "coco", "n": 40, "train": None,
         "evaluated": files("coco.json", "coco_cc")},
        {**captions, "name": "astronomy", "layout": "coco", "n": len(figures), "train": None,
         "evaluated": files("astronomy.json", "openstax_astronomy")},
        {**radiology, "n": 147, "evaluated": files("vqa_rad/qa.json", "vqa_rad/images"),
         "train": files("vqa_rad/qa.json", "vqa_rad/images"), "shots": 1},
    ]  # fmt: skip
    found = []
    for page in wanted:
        found.append(tmp_path / f"{page['name']}.yaml")
        found[-1].write_text(json.dumps({**page, "max_new_tokens": 6}), encoding="utf-8")
    return found


def test_the_suite_runs_on_real_data_with_the_blind_baseline_beside(fovea, trained, pages, tmp_path):
    words = [w for p in pages for w in ("--task", p)]
    done = fovea("eval", trained / "instruct", *words, "--data", tmp_path / "data", "--nproc", 2,
                 "--out", tmp_path / "out")  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    for name, n, value in (("coco_cc", 40, "CIDEr"), ("astronomy", 179, "CIDEr"), ("vqa_rad", 147, "folded")):
        result = json.loads((tmp_path / f"out/{name}.json").read_text())
        assert (result["status"], result["n"]) == ("complete", n)
        assert result["blind"].keys() == result["scores"].keys() >= {value}
        low, high = result["interval_95"][value]
        assert low <= result["scores"][value] <= high
        rows = [json.loads(line) for line in (tmp_path / f"out/{name}.jsonl").read_text("utf-8").splitlines()]
        assert len({r["id"] for r in rows}) == n
        assert any(r["raw"] != r["blind_raw"] for r in rows)
