"""transformers' templates, tokenizers and processor give the same ids."""

import random

import pytest
from PIL import Image
from transformers import AutoTokenizer, Idefics2ImageProcessorPil, Idefics2Processor

import mistral_like
from data_pipeline.sample import Sample
from data_pipeline.stream.chat import Variant, prompt, render
from data_pipeline.stream.tokens import Tokenizer
from dialogues import random_dialogue


def messages(s: Sample) -> list[dict]:
    """The sample in the form that transformers takes."""
    found: list[dict] = []
    for segment in s.segments:
        if not found or (found[-1]["role"], found[-1]["turn"]) != (segment.role, segment.turn):
            found.append({"role": segment.role, "turn": segment.turn, "content": []})
        part = {"type": "image"} if segment.type == "image" else {"type": "text", "text": segment.text}
        found[-1]["content"].append(part)
    return found


@pytest.mark.parametrize("style", mistral_like.STYLES)
@pytest.mark.parametrize("layout", ["idefics2", "mistral"])
def test_transformers_template_and_tokenizer_give_the_same_ids(tmp_path, learned, layout, style) -> None:
    ours = Tokenizer.load(mistral_like.write(tmp_path / "in", *learned, style), layout)
    ours.save(tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(theirs) == len(ours)
    rng = random.Random(1)
    for _ in range(60):
        s = random_dialogue(rng, pictures=layout == "mistral")
        expected = render(s, ours, 1, "answers").input_ids.tolist()
        text = theirs.apply_chat_template(messages(s), tokenize=False)
        assert theirs(text)["input_ids"] == expected  # the template alone says where <s> stands
        assert theirs(text, add_special_tokens=False)["input_ids"] == expected
        assert theirs.apply_chat_template(messages(s), tokenize=True)["input_ids"] == expected
        assert expected.count(1) == 1
        asked = theirs.apply_chat_template(messages(s)[:-1], add_generation_prompt=True, tokenize=False)
        turns = sum(m["role"] == "assistant" for m in messages(s))
        assert theirs(asked)["input_ids"] == prompt(s, ours, 1, turn=turns - 1).input_ids.tolist()


@pytest.mark.parametrize("splitting", [False, True])
def test_idefics2_processor_makes_the_same_of_every_picture(tmp_path, learned, splitting: bool) -> None:
    ours = Tokenizer.load(mistral_like.write(tmp_path / "in", *learned, "first"), "idefics2")
    ours.save(tmp_path / "out")
    pictures = Idefics2ImageProcessorPil(
        size={"longest_edge": 8, "shortest_edge": 4}, do_image_splitting=splitting
    )
    processor = Idefics2Processor(pictures, AutoTokenizer.from_pretrained(tmp_path / "out"), image_seq_len=3)
    processor.chat_template = processor.tokenizer.chat_template
    image = Image.new("RGB", (8, 8))
    rng = random.Random(2)
    shown = 0
    for _ in range(60):
        s = random_dialogue(rng, pictures=True)
        r = render(s, ours, 3, "answers", Variant(split=splitting))
        text = processor.apply_chat_template(messages(s), tokenize=False)
        given = [[image] * len(r.images)] if r.images else None
        made = processor(text=text, images=given)
        assert made["input_ids"] == [r.input_ids.tolist()]
        shown += len(r.images)
    assert shown > 60


def test_idefics2_as_published_gives_the_same_ids(tmp_path, learned) -> None:
    """The template of the checkpoint, which leaves <s> to the tokenizer, on the tokenizer as it was."""
    source = mistral_like.write(tmp_path, *learned, "first")
    ours = Tokenizer.load(source, "idefics2")
    pictures = Idefics2ImageProcessorPil(
        size={"longest_edge": 8, "shortest_edge": 4}, do_image_splitting=False
    )
    processor = Idefics2Processor(pictures, AutoTokenizer.from_pretrained(source), image_seq_len=2)
    rng = random.Random(3)
    for _ in range(60):
        s = random_dialogue(rng, pictures=True)
        text = ""
        for m in messages(s):
            parts = ["<image>" if p["type"] == "image" else p["text"] for p in m["content"]]
            colon = ":" if parts[0] == "<image>" else ": "
            text += m["role"].capitalize() + colon + "".join(parts) + "<end_of_utterance>\n"
        r = render(s, ours, 2, "answers")
        made = processor(text=text, images=[[Image.new("RGB", (8, 8))] * len(r.images)] if r.images else None)
        assert made["input_ids"] == [r.input_ids.tolist()]


@pytest.mark.parametrize("style", ["legacy", "always"])
def test_mistral_as_published_gives_the_same_ids(tmp_path, learned, style) -> None:
    """<s>[INST] q [/INST] a</s>[INST] ..., encoded part by part as mistral-common does."""
    source = mistral_like.write(tmp_path, *learned, style)
    ours, theirs = Tokenizer.load(source, "mistral"), AutoTokenizer.from_pretrained(source)
    rng = random.Random(4)
    for _ in range(60):
        s = random_dialogue(rng, pictures=False)
        ids, system = [1], ""
        for m in messages(s):
            text = "\n".join(p["text"].strip() for p in m["content"])
            if m["role"] == "system":
                system = text + "\n\n"
            elif m["role"] == "user":
                ids += theirs(f"[INST] {system}{text} [/INST]", add_special_tokens=False)["input_ids"]
                system = ""
            else:
                ids += [*theirs(text, add_special_tokens=False)["input_ids"], 2]
        assert render(s, ours, 1, "answers").input_ids.tolist() == ids
