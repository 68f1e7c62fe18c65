"""The recipe captions on a tar as img2dataset writes it, a Parquet of `datasets`, COCO's JSON and a CSV."""

import csv
import io
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
import yaml
from PIL import Image

from data_pipeline.build.recipe import RECIPES, BuildRecipe


def words(n: int) -> str:
    return f"A view of the old harbour with {n} small boats in the morning light."


def test_pairs_of_every_format_are_read_filtered_and_rid_of_copies(fovea_build, tmp_path, make):
    inputs = tmp_path / "pairs"
    (inputs / "coco").mkdir(parents=True)
    with webdataset.TarWriter(str(inputs / "00000.tar")) as tar:
        for n, (text, picture) in enumerate(
            [
                (words(0), make.picture(0)),
                ("Something beautiful", make.picture(1)),
                (words(2), make.picture(2, 300, 150)),
                (words(3), make.picture(3, 1000, 250)),
                ("Das alte Schiff liegt seit vielen Jahren im Hafen der Stadt.", make.picture(4)),
                (words(5), b"<html>404 not found</html>"),
            ]
        ):
            facts = {"url": f"https://h.org/{n}.png", "status": "success", "key": f"{n:05d}"}
            tar.write({"__key__": f"{n:05d}", "png": picture, "txt": text, "json": json.dumps(facts)})
    # img2dataset's table of what it downloaded lies beside each tar and is no input.
    pq.write_table(pa.table({"url": ["https://h.org/0.png"], "caption": ["x"]}), inputs / "00000.parquet")
    # The picture of the tar again: re-encoded with the same words (a copy), and with other words (none).
    again = io.BytesIO()
    Image.open(io.BytesIO(make.picture(0))).save(again, "JPEG", quality=90)
    rows = [
        {"image": {"bytes": again.getvalue(), "path": None}, "text": words(0)},
        {"image": {"bytes": make.picture(0), "path": None}, "text": "Write to jo@mail.com about this boat."},
    ]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(inputs / "train.parquet"))
    (inputs / "coco/7.png").write_bytes(make.picture(7))
    coco = {
        "images": [{"id": 7, "file_name": "7.png", "license": 1}],
        "licenses": [{"id": 1, "name": "CC BY 4.0"}],
        "annotations": [{"id": i, "image_id": 7, "caption": words(i)} for i in (70, 71)],
    }
    (inputs / "coco/captions_val.json").write_text(json.dumps(coco))
    (inputs / "t.png").write_bytes(make.picture(8))
    with (inputs / "table.csv").open("w", newline="") as f:
        csv.writer(f).writerows([("image", "caption"), ("t.png", words(8))])

    built = fovea_build("captions", inputs, "tasks=2")
    shown = {m.url: s for s in built.samples("pairs") for m in s.media}
    assert {s.text for s in shown.values()} == {
        words(0), "Write to [EMAIL] about this boat.", f"{words(70)}\n{words(71)}", words(8)
    }  # fmt: skip
    first = shown["https://h.org/0.png"]
    assert [(s.type, s.role) for s in first.segments] == [("image", None), ("text", "alt")]
    assert first.image_bytes == (make.picture(0),)
    assert json.loads(first.general_metadata)["key"] == "00000"
    assert shown["coco/7.png"].license == "CC BY 4.0"
    samples, _ = built.dropped("pairs")
    assert samples == {
        "too few words": 1, "image too small": 1, "image too elongated": 1,
        "language not wanted": 1, "not an image": 1,
    }  # fmt: skip
    assert built.excluded() == {"copy of an image": 1}


def test_the_commented_fetch_is_valid_once_its_marks_are_removed():
    for name in ("captions", "obelics-like"):
        text = (RECIPES / f"{name}.yaml").read_text()
        marked = "\n".join(
            line.removeprefix("# ") if line.startswith(("# fetch:", "#   user_agent:")) else line
            for line in text.splitlines()
        )
        recipe = BuildRecipe.model_validate(yaml.safe_load(marked))
        assert recipe.fetch is not None
        assert "example" in recipe.fetch.user_agent
