"""The prompts that ship. A prompt is known by name and hash, so that no changed text keeps its old id."""

from dataclasses import dataclass

from data_pipeline.sample import content_id

CAPTION_SLOT = "{caption}"


@dataclass(frozen=True)
class Prompt:
    name: str
    text: str

    @property
    def id(self) -> str:
        return f"{self.name}@{content_id(self.text)[:12]}"

    def filled(self, caption: str) -> str:
        """The text with the original caption in its slot. Braces in the caption mean nothing."""
        return self.text.replace(CAPTION_SLOT, caption)


_SHIPPED = (
    Prompt("caption", "Describe the image in one sentence. Name only what can be seen."),
    Prompt(
        "dense",
        "Describe the image in one paragraph: the main objects with their colours, their number and where "
        "they stand to one another, then the background. Name only what can be seen, and read out any text "
        "in the image.",
    ),
    Prompt(
        "dense-grounded",
        "A text found beside this image says: {caption}\nDescribe the image in one paragraph. Use names "
        "and places from that text where the image bears them out, and leave out what cannot be seen.",
    ),
    Prompt(
        "qa",
        "Write three questions about the image that only someone who sees it can answer, each with a short "
        'answer. Reply with JSON alone: [{"question": "...", "answer": "..."}, ...]',
    ),
    Prompt("bare", ""),  # the image alone: what a Fovea checkpoint answers with a caption
)
PROMPTS = {p.name: p for p in _SHIPPED}


def named(prompt: str | None, task: str) -> Prompt:
    """The shipped prompt of that name, or the text itself; of none, the one named like the task."""
    if prompt is None:
        return PROMPTS[task]
    return PROMPTS.get(prompt) or Prompt("custom", prompt)
