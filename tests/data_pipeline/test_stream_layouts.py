"""The layouts of Idefics2 and Mistral: ids written out, and the same from transformers' own tokenizer,
chat template and Idefics2Processor.
"""

import json
import pickle
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
from PIL import Image
from transformers import AutoTokenizer, Idefics2ImageProcessorPil, Idefics2Processor

import mistral_like
from data_pipeline.errors import ConfigError, DataError
from data_pipeline.sample import Media, Sample, Segment
from data_pipeline.stream.chat import Rendered, Unusable, Variant, prompt, render
from data_pipeline.stream.layout import LAYOUTS
from data_pipeline.stream.tokens import Tokenizer

# Ids of the golden tokenizer: bytes from 3, so that <0x0A> is 13; then the letters; then the merges.
LETTERS = "▁abchioqsuAITNSU[]/:?"
IDS = {c: 259 + n for n, c in enumerate(LETTERS)}
MERGES = [("▁", "h"), ("▁h", "i"), ("N", "S"), ("]", "▁"), (":", "▁")]
HI, NS = 281, 282  # "▁hi", "NS"; 280 is "▁h"; 283, "]▁", and 284, ":▁", join what no layout may join
FIRST = 285  # behind the vocabulary: Mistral's <|image_start|>, Idefics2's <fake_token_around_image>
BOS, EOS, NEWLINE = 1, 2, 13


def b(text: str) -> list[int]:
    """The ids of letters that no merge joins."""
    return [IDS[c.replace(" ", "▁")] for c in text]


def golden(directory: Path, layout: str) -> Tokenizer:
    return Tokenizer.load(mistral_like.write(directory, LETTERS, MERGES, "legacy"), layout)


def sample(kind: str, *segments: Segment, media: int = 2) -> Sample:
    many = tuple(Media(media_id=str(n)) for n in range(media))
    return Sample(id="s", kind=kind, source="x", segments=segments, media=many, image_bytes=(b"",) * media)


def says(role: str, turn: int, *parts: str | int) -> list[Segment]:
    """A message: texts, and pictures by number."""
    return [
        Segment(type="image", media=p, role=role, turn=turn)
        if isinstance(p, int)
        else Segment(type="text", text=p, role=role, turn=turn)
        for p in parts
    ]


DIALOGUE = sample(
    "instruct",
    *says("user", 0, 0, "hi?"),
    *says("assistant", 0, "a"),
    *says("user", 1, "b"),
    *says("assistant", 1, "c"),
)
WITH_SYSTEM = sample(
    "instruct",
    *says("system", 0, "s"),
    *says("user", 0, "hi", 0, 1, "u"),
    *says("assistant", 0, "a"),
)
DOCUMENT = sample("interleaved", *says("", 0, "a", 0, 1, "b", "c"))
CAPTION = sample("caption", *says("", 0, 0, "a"))


def targets(r: Rendered) -> list[int]:
    return r.input_ids[r.loss].tolist()


def test_golden_mistral(tmp_path) -> None:
    t = golden(tmp_path, "mistral")
    start, end, image = FIRST, FIRST + 1, FIRST + 2
    opening, closing = [259, 275, 270, NS, 271, 276], [259, 275, 277, 270, NS, 271, 276]
    assert opening == [*b(" [I"), NS, *b("T]")]
    r = render(DIALOGUE, t, 2, "answers")
    assert r.input_ids.tolist() == [
        *[BOS, *opening, start, image, image, end, HI, IDS["?"], *closing, *b(" a"), EOS],
        *[*opening, *b(" b"), *closing, *b(" c"), EOS],
    ]
    assert targets(r) == [*b(" a"), EOS, *b(" c"), EOS]
    assert targets(render(DIALOGUE, t, 2, "all_text")) == [HI, IDS["?"], *b(" a"), EOS, *b(" b c"), EOS]
    assert r.image_ids.tolist()[:12] == [*[0] * 8, 1, 1, 0, 0]
    # The system's message stands in the first question, before a blank line.
    assert render(WITH_SYSTEM, t, 1, "answers").input_ids.tolist() == [
        *[BOS, *opening, *b(" s"), NEWLINE, NEWLINE, *b("hi"), start, image, end],
        *[start, image, end, *b(" u"), *closing, *b(" a"), EOS],
    ]
    assert render(DOCUMENT, t, 1, "answers").input_ids.tolist() == [
        *[BOS, *b(" a"), start, image, end, start, image, end, *b(" b"), NEWLINE, *b("c"), EOS]
    ]
    split = render(CAPTION, t, 1, "answers", Variant(split=True))
    assert split.input_ids.tolist()[:16] == [BOS, *[start, image, end] * 5]
    assert split.image_ids.tolist()[:16] == [0, *[0, 1, 0], *[0, 2, 0], *[0, 3, 0], *[0, 4, 0], *[0, 5, 0]]
    assert (split.images, split.tiles) == ((0,), 5)
    assert targets(split) == [*b(" a"), EOS]
    assert (t.pad_id, t.bos_id, t.eos_id, t.end_id, t.text_vocab_size, len(t)) == (0, 1, 2, 2, 285, 288)


def test_golden_idefics2(tmp_path) -> None:
    t = golden(tmp_path, "idefics2")
    fake, image, end = FIRST, FIRST + 1, FIRST + 2
    letters = {c: 3 + ord(c) for c in "ermntyS"}  # bytes, where the vocabulary has no letter
    user = [IDS["U"], IDS["s"], letters["e"], letters["r"], IDS[":"]]
    assistant = [IDS["A"], IDS["s"], IDS["s"], IDS["i"], IDS["s"], letters["t"], IDS["a"], letters["n"]]
    assistant += [letters["t"], IDS[":"]]
    r = render(DIALOGUE, t, 2, "answers")
    assert r.input_ids.tolist() == [
        *[BOS, 259, *user, fake, image, image, fake, HI, IDS["?"], end, NEWLINE],
        *[*assistant, *b(" a"), end, NEWLINE],
        *[*user, *b(" b"), end, NEWLINE],
        *[*assistant, *b(" c"), end, NEWLINE],
    ]
    assert targets(r) == [*b(" a"), end, *b(" c"), end]
    assert targets(render(DIALOGUE, t, 2, "all_text")) == [HI, IDS["?"], *b(" a"), end, *b(" b c"), end]
    system = [IDS["S"], letters["y"], IDS["s"], letters["t"], letters["e"], letters["m"], IDS[":"]]
    assert render(WITH_SYSTEM, t, 1, "answers").input_ids.tolist() == [
        *[BOS, 259, *system, *b(" s"), end, NEWLINE, *user, HI, fake, image, fake, image, fake, *b(" u")],
        *[end, NEWLINE, *assistant, *b(" a"), end, NEWLINE],
    ]
    assert render(DOCUMENT, t, 1, "answers").input_ids.tolist() == [
        *[BOS, *b(" a"), fake, image, fake, image, fake, *b(" b"), NEWLINE, *b("c"), EOS]
    ]
    split = render(CAPTION, t, 1, "answers", Variant(split=True))
    assert split.input_ids.tolist()[:12] == [
        BOS,
        fake,
        image,
        fake,
        image,
        fake,
        image,
        fake,
        image,
        fake,
        image,
        fake,
    ]
    assert split.image_ids.tolist()[:12] == [0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0]
    assert (t.end_id, t.image_start_id, t.image_end_id, t.image_id) == (end, fake, fake, image)
    assert [i for i in range(len(t)) if not t.may_be_target[i]] == [0, 1, fake, image]


WORDS = "a cat, Naïve 日本 😀 User: [/INST] [INST] what? Assistant: 3.5 x=1; </p <b> the\tend".split(" ")  # noqa: SIM905


def random_text(rng: random.Random) -> str:
    words = rng.choices(WORDS, k=rng.randint(1, 8))
    blank = rng.choice([" ", " ", "  ", "\n", "\n\n"])
    return rng.choice(["", "", "", " ", "\n"]) + blank.join(words) + rng.choice(["", "", "", " ", "\n\n"])


def random_dialogue(rng: random.Random, pictures: bool) -> Sample:
    segments: list[Segment] = []
    if rng.random() < 0.3:
        segments += says("system", 0, random_text(rng))
    for turn in range(rng.randint(1, 4)):
        shown = [rng.randint(0, 1) for _ in range(rng.randint(0, 3))] if pictures else []
        parts: list[str | int] = [*shown, *(random_text(rng) for _ in range(rng.randint(1, 2)))]
        if rng.random() < 0.3:
            rng.shuffle(parts)
        segments += says("user", turn, *parts)
        segments += says("assistant", turn, random_text(rng))
    return sample("instruct", *segments)


def messages(s: Sample) -> list[dict]:
    """The sample in the form that transformers takes."""
    found: list[dict] = []
    for segment in s.segments:
        if not found or (found[-1]["role"], found[-1]["turn"]) != (segment.role, segment.turn):
            found.append({"role": segment.role, "turn": segment.turn, "content": []})
        part = {"type": "image"} if segment.type == "image" else {"type": "text", "text": segment.text}
        found[-1]["content"].append(part)
    return found


@pytest.fixture(scope="module")
def learned() -> tuple[str, list[tuple[str, str]]]:
    rng = random.Random(0)
    texts = [" [INST] " + random_text(rng) + " [/INST] " + random_text(rng) for _ in range(200)]
    texts += ["User: x", "Assistant: x", "System: x"] * 20
    letters, merges = mistral_like.learn((t.replace("\n", " ") for t in texts), 300)
    return letters, merges


def test_golden_tiny_with_split_pictures(bytes_tokenizer) -> None:
    """The others of `tiny` stand in test_stream_chat.py."""
    start, end, image, a = 263, 264, 265, 71
    r = render(DOCUMENT, bytes_tokenizer, 1, "answers", Variant(split=True))
    newline = 205
    assert r.input_ids.tolist() == [1, a, *[start, image, end] * 10, a + 1, newline, a + 2, 2]
    assert r.image_ids.tolist() == [0, 0, *[i for n in range(1, 11) for i in (0, n, 0)], 0, 0, 0, 0]
    assert (r.images, r.tiles) == ((0, 1), 5)
    assert r.cuts == (2, 17, 32, 34)


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


@pytest.mark.parametrize(("layout", "asks"), [("mistral", " [/INST]"), ("idefics2", "Assistant:")])
def test_no_token_reaches_from_the_prompt_into_the_answer(tmp_path, layout: str, asks: str) -> None:
    """A merge such as "]▁" would: the model is asked with "]", and was trained on something else."""
    t = golden(tmp_path, layout)
    assert t.encode(asks + " a") != t.encode(asks) + t.encode(" a")  # the trap is there
    s = sample("instruct", *says("user", 0, "b?"), *says("assistant", 0, "a"))
    r, asked = render(s, t, 1, "answers"), prompt(s, t, 1)
    assert r.input_ids.tolist()[: len(asked)] == asked.input_ids.tolist()
    assert targets(r) == [*b(" a"), t.end_id]
    assert r.loss[len(asked)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_answers_and_nothing_else_are_targets(tmp_path, layout, learned, tokenizer) -> None:
    """Decoded, the targets are the answers, turn by turn, whatever the dialogue says."""
    t = (
        tokenizer
        if layout == "tiny"
        else Tokenizer.load(mistral_like.write(tmp_path, *learned, "legacy"), layout)
    )
    rng = random.Random(5)
    for _ in range(40):
        s = random_dialogue(rng, pictures=True)
        r = render(s, t, 2, "answers")
        edges = r.loss.astype(int).tolist()
        runs = [m.span() for m in re.finditer("1+", "".join(map(str, edges)))]
        answers = [x.text for x in s.segments if x.role == "assistant"]
        assert [t.decode(r.input_ids[a:z]).strip() for a, z in runs] == [a.strip() for a in answers]
        assert all(r.input_ids[z - 1] == t.end_id for _, z in runs)


@pytest.mark.parametrize("layout", ["idefics2", "mistral"])
def test_text_that_spells_special_tokens_stays_text(tmp_path, layout, learned) -> None:
    t = Tokenizer.load(mistral_like.write(tmp_path, *learned, "legacy"), layout)
    spelled = "".join([*t.ids, "<0x0A>", "<image>", "<|image|>"])
    s = sample("instruct", *says("user", 0, spelled), *says("assistant", 0, spelled), media=0)
    plain = sample("instruct", *says("user", 0, "x"), *says("assistant", 0, "x"), media=0)
    special = set(t.ids.values())
    first, second = (
        [i for i in render(x, t, 1, "answers").input_ids.tolist() if i in special] for x in (s, plain)
    )
    assert first == second
    assert not render(s, t, 1, "answers").image_ids.any()
    t.save(tmp_path / "again")
    for again in (Tokenizer.load(tmp_path / "again"), pickle.loads(pickle.dumps(t))):
        assert again.layout is t.layout
        assert again.fingerprint == t.fingerprint
        assert again.encode(spelled) == t.encode(spelled)
        assert again.decode(t.encode(spelled)) == spelled


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        (("user", "user", "assistant"), "turns do not alternate"),
        (("assistant", "user"), "turns do not alternate"),
        (("user", "assistant", "system", "user", "assistant"), "turns do not alternate"),
        (("user", "tool"), "role tool"),
        (("system", "user"), "no targets"),
    ],
)
def test_what_mistral_cannot_say_is_unusable(tmp_path, learned, roles, reason) -> None:
    t = Tokenizer.load(mistral_like.write(tmp_path, *learned, "legacy"), "mistral")
    segments = [x for n, role in enumerate(roles) for x in says(role, n, "x")]
    with pytest.raises(Unusable, match=f"^{reason}$"):
        render(sample("instruct", *segments), t, 1, "answers")


def test_loading_says_what_is_wrong(tmp_path, learned) -> None:
    source = mistral_like.write(tmp_path / "mistral", *learned, "legacy")
    with pytest.raises(
        DataError, match=r"not where the layout 'tiny' expects them(.|\n)*tiny, idefics2, mistral"
    ):
        Tokenizer.load(source)
    with pytest.raises(ConfigError, match="no 'mistrel'; did you mean 'mistral'"):
        Tokenizer.load(source, "mistrel")
    Tokenizer.load(source, "mistral").save(tmp_path / "saved")
    with pytest.raises(ConfigError, match="saved with the layout 'mistral', not 'idefics2'"):
        Tokenizer.load(tmp_path / "saved", "idefics2")
    (tmp_path / "saved" / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataError, match=r"is no tokenizer_config\.json"):
        Tokenizer.load(tmp_path / "saved")
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "tokenizer.model").write_bytes(b"")
    with pytest.raises(DataError, match=r"tokenizer\.model alone is not read"):
        Tokenizer.load(slow)


def test_special_tokens_are_found_where_they_are_or_refused(tmp_path, learned) -> None:
    source = mistral_like.write(tmp_path, *learned, "legacy")
    text = (source / "tokenizer.json").read_text()
    size = len(json.loads(text)["model"]["vocab"])
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    names = ("<image>", "<end_of_utterance>", "<fake_token_around_image>")

    def with_tokens(**changes: object) -> Tokenizer:
        tokenizer = json.loads(text)
        tokenizer["added_tokens"] += [
            {"id": size + n, "content": name, **added, **changes} for n, name in enumerate(names)
        ]
        (source / "tokenizer.json").write_text(json.dumps(tokenizer))
        return Tokenizer.load(source, "idefics2")

    there = with_tokens()
    assert [there.ids[n] for n in names] == [size, size + 1, size + 2]
    assert there.text_vocab_size == size
    with pytest.raises(DataError, match=r"text that says .* gives that special token"):
        with_tokens(special=False)


def test_a_tokenizer_that_the_layout_cannot_use_is_refused(tmp_path, learned) -> None:
    source = mistral_like.write(tmp_path, *learned, "legacy")
    text = (source / "tokenizer.json").read_text()

    def refused(tokenizer: dict, why: str) -> None:
        (source / "tokenizer.json").write_text(json.dumps(tokenizer))
        with pytest.raises(DataError, match=why):
            Tokenizer.load(source, "mistral")

    no_bos = json.loads(text)
    no_bos["model"]["vocab"]["<S>"] = no_bos["model"]["vocab"].pop("<s>")
    no_bos["added_tokens"] = [x for x in no_bos["added_tokens"] if x["content"] != "<s>"]
    refused(no_bos, "<s> is missing")
    refused(json.loads(text.replace('"<0x41>"', '"<|image|>"')), r"<\|image\|> is 68, not one of the last")
    later = json.loads(text)
    later["added_tokens"].append({**later["added_tokens"][0], "id": 3, "content": "[INST]"})
    later["model"]["vocab"]["[INST]"] = later["model"]["vocab"].pop("<0x00>")
    refused(later, r"has \[INST\] as a token of its own")
    refused(json.loads(text.replace('"byte_fallback": true', '"byte_fallback": false')), "byte fallback")


def test_blanks_are_those_of_the_text_alone(tmp_path, learned) -> None:
    """Whatever a tokenizer puts in or takes away by itself: ids and text go back and forth unchanged."""
    made = [
        Tokenizer.load(mistral_like.write(tmp_path / s, *learned, s), "mistral") for s in mistral_like.STYLES
    ]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    special = ["<unk>", "<s>", "</s>"]
    trainer = tokenizers.trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=special)
    backend.train_from_iterator([], trainer)
    backend.save(str(tmp_path / "tokenizer.json"))
    made.append(Tokenizer.load(tmp_path, "mistral"))
    for t in made:
        for text in ("a", " a", "  a\n", "\n a", "日本 😀 é", " "):
            assert t.decode(t.encode(text)) == text
        assert len(t.encode("a")) == 1
    assert made[0].fingerprint != made[-1].fingerprint


@pytest.mark.parametrize("layout", LAYOUTS)
def test_turns_come_in_another_order_by_seed_and_take_the_same_tokens(
    tmp_path, layout, learned, tokenizer
) -> None:
    t = (
        tokenizer
        if layout == "tiny"
        else Tokenizer.load(mistral_like.write(tmp_path, *learned, "legacy"), layout)
    )
    parts = [*says("system", 0, "s"), *says("user", 0, 1, 0, "what0?"), *says("assistant", 0, "a0")]
    for n in range(1, 5):
        parts += [*says("user", n, f"what{n}?"), *says("assistant", n, f"a{n}")]
    s = sample("instruct", *parts)
    written = render(s, t, 2, "answers")
    orders = set()
    for seed in range(30):
        r = render(s, t, 2, "answers", Variant(turns=seed))
        assert len(r) == len(written)
        assert r.images == (1, 0)
        assert (r.loss.sum(), r.image_ids.max()) == (written.loss.sum(), 2)
        said = t.decode(r.input_ids)
        order = tuple(re.findall(r"what(\d)", said))
        assert tuple(re.findall(r"a(\d)", said)) == order  # each question with its answer
        assert sorted(order) == list("01234")
        first_question = said.index("what")
        assert 0 <= said.index("s") < first_question
        assert int(r.image_ids.nonzero()[0].max()) < int(r.loss.argmax())
        again = render(s, t, 2, "answers", Variant(turns=seed))
        assert again.input_ids.tolist() == r.input_ids.tolist()
        orders.add(order)
    if layout != "mistral":  # there the system's text and the first question are one string
        assert len(orders) > 10
    assert render(s, t, 2, "answers", Variant(turns=None)).input_ids.tolist() == written.input_ids.tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_order_of_any_dialogue_keeps_its_size_and_pictures(tmp_path, layout, learned, tokenizer) -> None:
    t = (
        tokenizer
        if layout == "tiny"
        else Tokenizer.load(mistral_like.write(tmp_path, *learned, "first"), layout)
    )
    rng = random.Random(6)
    moved = 0
    for seed in range(120):
        s = random_dialogue(rng, pictures=seed % 2 == 0)
        written = render(s, t, 2, "answers")
        r = render(s, t, 2, "answers", Variant(turns=seed))
        assert (len(r), r.images, r.loss.sum()) == (len(written), written.images, written.loss.sum())
        moved += r.input_ids.tolist() != written.input_ids.tolist()
    assert moved > 10


@pytest.mark.parametrize(
    "parts",
    [
        [
            *says("user", 0, "a"),
            *says("assistant", 0, "b"),
            *says("user", 1, 0, "c"),
            *says("assistant", 1, "d"),
        ],
        [
            *says("user", 0, "a", 0),
            *says("assistant", 0, "b"),
            *says("user", 1, "c"),
            *says("assistant", 1, "d"),
        ],
        [*says("user", 0, 0), *says("assistant", 0, "b"), *says("user", 1, "c"), *says("assistant", 1, "d")],
        [*says("user", 0, "a"), *says("assistant", 0, "b"), *says("user", 1, "c")],
    ],
    ids=["a later picture", "a picture after text", "a picture alone", "a question without an answer"],
)
def test_a_dialogue_whose_order_matters_stays_as_written(tokenizer, parts) -> None:
    s = sample("instruct", *parts)
    written = render(s, tokenizer, 2, "answers").input_ids.tolist()
    for seed in range(8):
        assert render(s, tokenizer, 2, "answers", Variant(turns=seed)).input_ids.tolist() == written


def test_split_pictures_in_every_kind_of_sample(tokenizer, make) -> None:
    for s in (make.caption(0), make.document(0, pictures=2), make.dialogue(0)):
        whole = render(s, tokenizer, 3, "answers")
        split = render(s, tokenizer, 3, "answers", Variant(split=True))
        assert split.images == whole.images
        assert split.image_ids.max() == 5 * whole.image_ids.max()
        assert len(split) - len(whole) == 4 * 5 * len(whole.images)
        assert targets(split) == targets(whole)
        if s.kind != "interleaved":
            asked = prompt(s, tokenizer, 3, variant=Variant(split=True))
            caption = Variant(caption=1, split=True)
            longer = render(s, tokenizer, 3, "answers", caption).input_ids.tolist()
            assert asked.tiles == 5
            assert longer[: len(asked)] == asked.input_ids.tolist()
    muted = replace(make.caption(0), segments=make.caption(0).segments[:1])
    with pytest.raises(Unusable, match="no targets"):
        render(muted, tokenizer, 3, "answers", Variant(split=True))
