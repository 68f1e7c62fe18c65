"""LLaVA: one JSON list of {id, image, conversations}, and a folder of images.

`<image>` in a text is the place of the next image. Kept: text, image bytes, order; a text that begins or ends
with a line break beside an image loses it, as the mark stands on a line of its own.
"""

from pathlib import Path
from typing import Any

from data_pipeline.build.exporters.elements import Unfit, check_dialogue, shown
from data_pipeline.build.exporters.files import ImageFolder, TextFiles
from data_pipeline.build.read.layouts.llava import conversations_of
from data_pipeline.build.read.layouts.turns import IMAGE
from data_pipeline.sample import Sample


class Llava:
    def __init__(self, out: Path):
        self.list = TextFiles(out, "-dialogues.json")
        self.images = ImageFolder(out)

    def add(self, sample: Sample, split: str) -> int:
        """The number of images written. Raises Unfit."""
        check_dialogue(sample)
        if any(IMAGE in (s.text or "") for s in sample.segments):
            raise Unfit(f"a text with {IMAGE} in it")
        pictures = [shown(sample, s.media or 0) for s in sample.segments if s.type == "image"]
        names = [self.images.put(p) for p in pictures]
        entry: dict[str, Any] = {"id": sample.id}
        if names:
            entry["image"] = names[0] if len(names) == 1 else names
        self.list.add(split, {**entry, "conversations": conversations_of(sample.segments)})
        return len(pictures)

    def close(self) -> None:
        self.list.close()
