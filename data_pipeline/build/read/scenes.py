"""Scenes as samples: alt texts, descriptions, questions, dialogues, and text without a picture."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_pipeline.build.read.layouts.turns import questions_and_answers
from data_pipeline.build.read.reading import Item, Stamp, as_json
from data_pipeline.build.recipe import ScenesSource
from data_pipeline.build.scenes.draw import VERSION, Scene
from data_pipeline.build.scenes.text import alt_text, ask, fact
from data_pipeline.sample import Media, Sample, Segment, content_id


@dataclass(frozen=True)
class ScenesReader:
    source: ScenesSource

    def inputs(self) -> list[Stamp]:
        return []

    def units(self) -> range:
        return range(self.source.first, self.source.first + self.source.count)

    def read(self, unit: int) -> Iterator[Item]:
        source = self.source
        rng = random.Random(f"{source.style}:{source.seed}:{unit}")
        if source.style == "text":
            q = fact(rng)
            yield self._item(
                unit,
                0,
                None,
                questions_and_answers([(q.text, q.answer)], image=False),
                {"question_type": q.type},
            )
            return
        scene = Scene.at(source.seed, unit)
        known = {"objects": scene.objects()}
        match source.style:
            case "alt":
                yield self._item(unit, 0, scene, _caption(alt_text(scene, rng), "alt"), known)
            case "dense":
                yield self._item(unit, 0, scene, _caption(scene.describe(), "recaption"), known)
            case "questions":
                for n, q in enumerate(ask(scene, rng, source.per_scene)):
                    turns = questions_and_answers([(q.text, q.answer)], image=True)
                    yield self._item(unit, n, scene, turns, {**known, "question_type": q.type})
            case "dialogue":
                questions = ask(scene, rng, rng.choice((4, 5, 6)))
                turns = questions_and_answers([(q.text, q.answer) for q in questions], image=True)
                yield self._item(
                    unit, 0, scene, turns, {**known, "question_type": [q.type for q in questions]}
                )

    def _item(
        self, index: int, n: int, scene: Scene | None, segments: tuple[Segment, ...], metadata: dict[str, Any]
    ) -> Item:
        source = self.source
        file, where = f"scenes seed {source.seed}", f"scene {index}" + (f", question {n}" if n else "")
        media: tuple[Media, ...] = ()
        data: tuple[bytes, ...] = ()
        if scene is not None:
            png = scene.png(source.size)
            alt = segments[1].text if segments[1].role == "alt" else None
            media = (Media(media_id=content_id(png), nbytes=len(png), alt=alt),)
            data = (png,)
        texts = [s.text for s in segments if s.text]
        sample = Sample(
            id=content_id(source.name, file, where, *(m.media_id for m in media), *texts),
            kind="caption" if source.style in ("alt", "dense") else "instruct",
            source=source.name,
            license=source.license,
            segments=segments,
            media=media,
            image_bytes=data,
            synthetic={
                "generator": "fovea-scenes",
                "generator_version": VERSION,
                "prompt_id": source.style,
                "seed": source.seed,
                "params_json": as_json({"index": index, "size": source.size}),
                "parent_ids": None,
            },
            general_metadata=as_json(metadata),
        )
        return Item(file=file, where=where, sample=sample)


def _caption(text: str, role: str) -> tuple[Segment, ...]:
    return (Segment(type="image", media=0), Segment(type="text", text=text, role=role))
