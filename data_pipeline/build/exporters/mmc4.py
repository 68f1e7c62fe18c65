"""MMC4: lines of JSON with `text_list` and `image_info`, and a folder of images.

An image stands before the text of its `matched_text_index`; for images after the last text there is an empty
text at the end. Kept: text to the character, image bytes, order, addresses, similarities. Not kept: alt
texts, roles of captions, boxes, page breaks, scores.
"""

from pathlib import Path
from typing import Any

from data_pipeline.build.exporters.elements import document
from data_pipeline.build.exporters.files import ImageFolder, TextFiles
from data_pipeline.sample import Sample


class Mmc4:
    def __init__(self, out: Path):
        self.lines = TextFiles(out, ".jsonl")
        self.images = ImageFolder(out)

    def add(self, sample: Sample, split: str) -> int:
        """The number of images written. Raises Unfit."""
        sequence = document(sample)
        sims = [s.sim for s in sample.segments if s.type == "image"]
        texts: list[str] = []
        infos: list[dict[str, Any]] = []
        for element in sequence:
            if isinstance(element, str):
                texts.append(element)
                continue
            info = {
                "image_name": self.images.put(element),
                "raw_url": element.media.url,
                "matched_text_index": len(texts),
                "matched_sim": sims[len(infos)],
            }
            infos.append({k: v for k, v in info.items() if v is not None})
        if any(i["matched_text_index"] == len(texts) for i in infos):
            texts.append("")
        self.lines.add(
            split,
            {"url": sample.url, "text_list": texts, "image_info": infos, "id": sample.id},
        )
        return len(infos)

    def close(self) -> None:
        self.lines.close()
