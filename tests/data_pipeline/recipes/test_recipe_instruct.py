"""The recipe instruct on rows of every layout, in Parquet, Arrow, a tar and compressed lines."""

import base64
import gzip
import json

import datasets
import webdataset

TURN = ("What stands at the harbour?", "A small red boat.")


def roles(sample) -> list[tuple[str | None, str | None]]:
    return [(s.role, s.text) for s in sample.segments]


def test_rows_of_every_layout_become_dialogues_and_ratings_become_scores(fovea_build, tmp_path, make):
    inputs = tmp_path / "dialogues"
    (inputs / "images").mkdir(parents=True)
    question, answer = TURN
    texts = [{"user": question, "assistant": answer, "source": "fine"}]
    fine = datasets.Dataset.from_list(
        [
            {"images": [{"bytes": make.picture(1), "path": None}], "texts": texts, "relevance_ratings": [4]},
            {"images": [{"bytes": make.picture(1), "path": None}], "texts": texts, "relevance_ratings": [4]},
        ]
    )
    fine.to_parquet(str(inputs / "finevision.parquet"))
    chat = {"role": "user", "content": f"<image>\n{question}"}, {"role": "assistant", "content": answer}
    saved = datasets.Dataset.from_list(
        [{"messages": list(chat), "images": [{"bytes": make.picture(2), "path": None}]}],
    )
    saved.save_to_disk(inputs / "saved")
    with webdataset.TarWriter(str(inputs / "0.tar")) as tar:
        turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
        tar.write(
            {"__key__": "a", "png": make.picture(3, 900, 60), "json": json.dumps({"conversations": turns})}
        )
        tar.write(
            {"__key__": "b", "png": make.picture(4, 900, 40), "json": json.dumps({"conversations": turns})}
        )
    uri = "data:image/png;base64," + base64.b64encode(make.picture(5)).decode()
    rows = [
        {"image": uri, "question": question, "answer": answer},
        {"question": question, "answer": "There is none."},
        {"question": "", "answer": "?"},
        {"image": "gone.png", "question": question, "answer": answer},
    ]
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    (inputs / "some_qa.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))

    built = fovea_build("instruct", inputs, "tasks=2", "--bad-inputs", "drop")
    shown = built.samples("dialogues")
    with_image = [("user", None), ("user", question), ("assistant", answer)]
    assert sorted(roles(s) for s in shown if s.media) == 4 * [with_image]
    assert {s.image_bytes[0] for s in shown if s.media} == {
        make.picture(1), make.picture(2), make.picture(3, 900, 60), make.picture(5)
    }  # fmt: skip
    (plain,) = [s for s in shown if not s.media]
    assert roles(plain) == [("user", question), ("assistant", "There is none.")]
    (rated,) = [s for s in shown if s.scores and "relevance_min" in s.scores]
    assert rated.scores["relevance_min"] == 4
    samples, _ = built.dropped("dialogues")
    assert samples == {"image too elongated": 1, "missing image": 1, "empty turn": 1}
    assert built.excluded() == {"copy of a document": 1}
