"""How dialogues and pictures are written for a language model: three layouts, each beside its chat template.

    tiny      <|bos|><|user|>[image]hi?<|end|><|assistant|>yo<|end|><|eos|>
              [image] = <|image_start|> <|image|>*K <|image_end|>, so for each tile
    idefics2  <s> User:[image] hi?<end_of_utterance>\\nAssistant: yo<end_of_utterance>\\n
              [image] = <fake_token_around_image> <image>*K <fake_token_around_image>; neighbours share a fake
    mistral   <s> [INST][image] hi? [/INST] yo</s> [INST] and? [/INST] so</s>
              [image] as tiny's; a system message stands in the first question, before a blank line

`idefics2` gives what transformers' Idefics2Processor makes of the chat template published with Idefics2-8B,
`mistral` what mistral-common's first tokenizer does (its issue 3 settles the spaces). The space after <s>,
</s> and [image] is written, because a tokenizer here puts none of its own before a text (`tokens.py`).
"""

from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

TEMPLATES = Path(__file__).parent / "templates"

CONTROL = ("<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
VISUAL = ("<|image_start|>", "<|image_end|>", "<|image|>")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is written where. In `opens` and `closes`, the name of a special token stands for that token.

    `control` tokens must be in the vocabulary; `added` ones stand behind it, and are put there if missing.
    """

    name: str
    pad: str
    bos: str
    eos: str  # ends a document
    end: str  # ends an answer: a target of it
    picture: tuple[str, str, str]  # before a tile's visual tokens, one visual token, after them
    control: tuple[str, ...]
    added: tuple[str, ...]
    opens: MappingProxyType[str, str]  # by role
    closes: MappingProxyType[str, tuple[str, ...]]  # by role
    lead: str = ""  # before a text that begins a message
    joint: str = "\n"  # between two texts of a message
    gap: str = ""  # before a text that follows <s>, </s> or a picture
    shared: bool = False  # one token closes a picture and opens the next
    trim: bool = False  # texts lose the blanks at their ends
    alternating: bool = False  # user and assistant take turns; the system's message joins the first question
    closed: bool = False  # a dialogue ends in <eos>, beside the last answer's own end
    chat_template: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        text = (TEMPLATES / f"{self.name}.jinja").read_text(encoding="utf-8")
        object.__setattr__(self, "chat_template", text)

    @property
    def special(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.control, *self.added)))

    @property
    def texts(self) -> tuple[str, ...]:
        """What it writes as text."""
        written = [*self.opens.values(), *(item for items in self.closes.values() for item in items)]
        return tuple(item for item in written if item not in self.special)


TINY = Layout(
    name="tiny",
    pad="<|pad|>",
    bos="<|bos|>",
    eos="<|eos|>",
    end="<|end|>",
    picture=("<|image_start|>", "<|image|>", "<|image_end|>"),
    control=CONTROL,
    added=VISUAL,
    opens=MappingProxyType({"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}),
    closes=MappingProxyType(dict.fromkeys(("system", "user", "assistant"), ("<|end|>",))),
    closed=True,
)
IDEFICS2 = Layout(
    name="idefics2",
    pad="<unk>",
    bos="<s>",
    eos="</s>",
    end="<end_of_utterance>",
    picture=("<fake_token_around_image>", "<image>", "<fake_token_around_image>"),
    control=("<unk>", "<s>", "</s>"),
    added=("<fake_token_around_image>", "<image>", "<end_of_utterance>"),
    opens=MappingProxyType({"system": "System:", "user": "User:", "assistant": "Assistant:"}),
    closes=MappingProxyType(
        dict.fromkeys(("system", "user", "assistant"), ("<end_of_utterance>", "\n")),
    ),
    lead=" ",
    joint="",
    gap=" ",
    shared=True,
)
MISTRAL = Layout(
    name="mistral",
    pad="<unk>",
    bos="<s>",
    eos="</s>",
    end="</s>",
    picture=("<|image_start|>", "<|image|>", "<|image_end|>"),
    control=("<unk>", "<s>", "</s>"),
    added=VISUAL,
    opens=MappingProxyType({"user": "[INST]", "assistant": ""}),
    closes=MappingProxyType({"user": (" [/INST]",), "assistant": ("</s>",)}),
    lead=" ",
    gap=" ",
    trim=True,
    alternating=True,
)
LAYOUTS = MappingProxyType({layout.name: layout for layout in (TINY, IDEFICS2, MISTRAL)})
