"""Real questions and chapters in every layout: transformers agrees, targets are answers, text is kept."""

import json
from itertools import groupby
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import mistral_like
from data_pipeline.sample import Media, Sample, Segment
from data_pipeline.stream.budget import Budget
from data_pipeline.stream.chat import Variant, render
from data_pipeline.stream.fit import CUT, NO_TARGETS, fit
from data_pipeline.stream.layout import LAYOUTS
from data_pipeline.stream.tokens import Tokenizer, train_tokenizer

REAL = Path(__file__).parents[2] / "../shared/realdata"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/realdata beside the repository")


def dialogues() -> list[list[tuple[str, str]]]:
    """VQA-RAD: all questions and answers about each image."""
    pairs = json.loads((REAL / "vqa_rad" / "qa.json").read_text())
    pairs.sort(key=lambda p: p["image_name"])
    groups = groupby(pairs, key=lambda p: p["image_name"])
    return [[(str(p["question"]), str(p["answer"])) for p in group] for _, group in groups]


def chapters() -> list[list[str | None]]:
    """Pages of a textbook: texts, and None for each figure."""
    lines = (REAL / "openstax_astronomy" / "interleaved.jsonl").read_text().splitlines()
    return [[part.get("text") for part in json.loads(line)["sequence"]] for line in lines]


@pytest.fixture(params=LAYOUTS)
def tokenizer(request, tmp_path) -> Tokenizer:
    words = [text for pairs in dialogues() for pair in pairs for text in pair]
    if request.param == "tiny":
        return train_tokenizer(words, 600)
    source = mistral_like.write(tmp_path / "in", *mistral_like.learn(words, 600), "legacy")
    return Tokenizer.load(source, request.param)


def test_dialogues_about_radiographs(tokenizer, tmp_path) -> None:
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(dialogues()) > 50
    for pairs in dialogues():
        segments = [Segment(type="image", media=0, role="user", turn=0)]
        messages: list[dict] = []
        for turn, pair in enumerate(pairs):
            for role, text in zip(("user", "assistant"), pair, strict=True):
                segments.append(Segment(type="text", text=text, role=role, turn=turn))
                messages.append({"role": role, "content": [{"type": "text", "text": text}]})
        messages[0]["content"].insert(0, {"type": "image"})
        sample = Sample(
            id="s",
            kind="instruct",
            source="x",
            segments=tuple(segments),
            media=(Media(media_id="0"),),
            image_bytes=(b"",),
        )
        r = render(sample, tokenizer, 1, "answers")
        text = theirs.apply_chat_template(messages, tokenize=False)
        if tokenizer.layout.shared:  # the processor's part: what an <image> becomes
            fake = "<fake_token_around_image>"
            text = text.replace("<image>", f"{fake}<image>{fake}")
        assert theirs(text)["input_ids"] == r.input_ids.tolist()
        ends = (r.input_ids == tokenizer.end_id) & r.loss
        assert int(ends.sum()) == len(pairs)
        answers = "".join(answer.strip() for _, answer in pairs)
        assert tokenizer.decode(r.input_ids[r.loss]).replace(" ", "") == answers.replace(" ", "")
        other = render(sample, tokenizer, 1, "answers", Variant(turns=1))
        assert len(other) == len(r)


def test_chapters_cut_to_rows_keep_every_word_and_every_figure(tokenizer) -> None:
    cut = 0
    for parts in chapters():
        segments, figures = [], 0
        for text in parts:
            if text is None:
                segments.append(Segment(type="image", media=figures))
                figures += 1
            else:
                segments.append(Segment(type="text", text=text))
        sample = Sample(
            id="s",
            kind="interleaved",
            source="x",
            segments=tuple(segments),
            media=tuple(Media(media_id=str(n)) for n in range(figures)),
            image_bytes=(b"",) * figures,
        )
        whole = render(sample, tokenizer, 16, "all_text", Variant(split=True))
        budget = Budget(tokens=512, images=10, patches=700)
        fitted = fit(whole, budget, (64,) * (5 * figures), tokenizer.bos_id, "split")
        assert all(len(p) <= 512 and p.image_ids.max() <= 10 for p in fitted.pieces)
        assert all(patches <= 700 for patches in fitted.patches)
        figures_kept = [m for p in fitted.pieces for m in p.images]
        assert figures_kept == list(range(figures)) or fitted.note == NO_TARGETS
        cut += fitted.note == CUT
        special = list(tokenizer.ids.values())
        kept = [i for p in fitted.pieces for i in p.input_ids.tolist() if i not in special]
        assert "".join(tokenizer.decode(kept).split()) == "".join("".join(t for t in parts if t).split())
    assert cut > 5
