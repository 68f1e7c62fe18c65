"""Alignment of images and texts as scores: by a SigLIP or CLIP checkpoint, or by a Fovea checkpoint.

Scorers of the interface in `data_pipeline.build.score.scorer`, which names them and writes their columns.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, BatchEncoding

from data_pipeline.batch import IGNORE
from data_pipeline.errors import ConfigError, DataError
from data_pipeline.manifest import sha256_file
from data_pipeline.sample import Sample, Segment
from data_pipeline.stream.chat import Rendered, Unusable, render
from data_pipeline.stream.collate import Document, Piece, collate
from data_pipeline.stream.decode import FORMATS, DecodeError, blank, decode
from trainer.engine.checkpoint import COMPLETE
from trainer.trained import Trained, open_trained

MAX_PIXELS = 50_000_000
"""An image of more is not scored; its header is judged before any pixel is decoded."""

BATCH = 16
_Place = tuple[str, int]  # sample id and media number


class Score(NamedTuple):
    """One value, as `data_pipeline.build.score.scorer.Score` (training imports nothing of the build)."""

    column: str
    id: str
    media_id: str | None
    value: float
    segment: int | None = None


@dataclass(frozen=True)
class _Pair:
    """An image of a sample, and the number of one of its texts."""

    sample: Sample
    media: int
    segment: int


class AlignmentScorer(ABC):
    """Cosine of image and text by a dual encoder; of several texts the best, with its number.

    In a document an image is compared with every text block, as MMC4 does (arXiv 2304.06939, which keeps
    images of at least 0.15 by CLIP L/14); of a caption sample, with every caption. LAION-5B keeps 0.28 by
    CLIP B/32 (arXiv 2210.08402). Dialogues are not scored: an answer alone does not speak of the image.
    """

    reads_images = True
    kind: str  # transformers' `model_type`, and the column

    def __init__(self, path: str) -> None:
        directory = Path(path)
        if not (directory / "config.json").is_file():
            raise ConfigError(
                f"no checkpoint of {self.name} at {path}: expected a directory with config.json"
            )
        # Weights as safetensors from this disk alone: nothing is unpickled, fetched or run.
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            config = AutoConfig.from_pretrained(directory, **local)
            if config.model_type != self.kind:
                raise ConfigError(f"{path} is of kind '{config.model_type}', not '{self.kind}'")
            self._model = AutoModel.from_pretrained(
                directory, use_safetensors=True, dtype=torch.float32, **local
            )
            self._tokenizer = AutoTokenizer.from_pretrained(directory, **local)
            self._images = AutoImageProcessor.from_pretrained(directory, **local)
        except (OSError, ValueError) as e:
            raise DataError(f"{path} does not open as a checkpoint of {self.name}: {e}") from None
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model.eval().to(self._device)
        self._length = config.text_config.max_position_embeddings
        weights = sorted(directory.glob("*.safetensors"))
        self.version = "1-" + "-".join(sha256_file(w)[:12] for w in weights)

    @property
    def name(self) -> str:
        return self.kind

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.name,)

    def score(self, samples: Sequence[Sample]) -> Iterable[Score]:
        """One score per image that decodes and has a text."""
        pairs = [p for s in samples for p in _pairs(s)]
        places = dict.fromkeys((p.sample.id, p.media) for p in pairs)
        by_id = {s.id: s for s in samples}
        of_image = self._image_features({k: by_id[k[0]].image_bytes[k[1]] for k in places})
        texts = list(dict.fromkeys(_text(p) for p in pairs))
        of_text = dict(zip(texts, self._text_features(texts), strict=True))
        best: dict[_Place, tuple[float, _Pair]] = {}
        for p in pairs:
            key = (p.sample.id, p.media)
            if key not in of_image:
                continue
            value = float(of_image[key] @ of_text[_text(p)])
            if key not in best or value > best[key][0]:
                best[key] = (value, p)
        for value, p in best.values():
            yield Score(self.name, p.sample.id, p.sample.media[p.media].media_id, value, p.segment)

    @torch.no_grad()
    def _text_features(self, texts: list[str]) -> list[torch.Tensor]:
        rows: list[torch.Tensor] = []
        for chunk in _chunks(texts):
            given = self._tokens(chunk).to(self._device)
            rows += _normalised(self._model.get_text_features(**given))
        return rows

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """float32[n, d]: unit vectors of what the tower sees in n images; decontamination compares them."""
        rows: list[torch.Tensor] = []
        for chunk in _chunks(list(images)):
            given = self._images(images=chunk, return_tensors="pt")["pixel_values"].to(self._device)
            rows += _normalised(self._model.get_image_features(pixel_values=given))
        return torch.stack(rows).cpu().numpy()

    @abstractmethod
    def _tokens(self, texts: list[str]) -> BatchEncoding:
        """As the encoder was trained to be given them."""

    @torch.no_grad()
    def _image_features(self, images: dict[_Place, bytes | None]) -> dict[_Place, torch.Tensor]:
        """The features of those that decode. One is unpacked at a time: each may be large."""
        pixels: dict[_Place, torch.Tensor] = {}
        for place, data in images.items():
            if data and (image := _open(data)) is not None:
                pixels[place] = self._images(images=image, return_tensors="pt")["pixel_values"][0]
        found: dict[_Place, torch.Tensor] = {}
        for chunk in _chunks(list(pixels)):
            given = torch.stack([pixels[p] for p in chunk]).to(self._device)
            rows = _normalised(self._model.get_image_features(pixel_values=given))
            found.update(zip(chunk, rows, strict=True))
        return found


class SiglipScorer(AlignmentScorer):
    """By a SigLIP checkpoint (arXiv 2303.15343). Its sigmoid is a monotone function of the cosine."""

    kind = "siglip"

    def _tokens(self, texts: list[str]) -> BatchEncoding:
        # Trained on small letters, padded to the full length, and without a mask over the padding.
        found = self._tokenizer(
            [t.lower() for t in texts],
            padding="max_length",
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
        )
        return BatchEncoding({"input_ids": found["input_ids"]})


class ClipScorer(AlignmentScorer):
    """By a CLIP checkpoint (arXiv 2103.00020)."""

    kind = "clip"

    def _tokens(self, texts: list[str]) -> BatchEncoding:
        found = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._length, return_tensors="pt"
        )
        return BatchEncoding({k: found[k] for k in ("input_ids", "attention_mask")})


class FoveaScorer:
    """How much an image helps a Fovea checkpoint to foresee its text, in nats per token: the mean
    log-likelihood of the text's tokens given the image, minus that given a blank of the same shape.

    About 0 where the text does not speak of the image, or the model does not see it. In a document an image
    is tried with the text block before it and after it; the better one counts. A dialogue is one text.
    """

    name = "fovea"
    columns = ("fovea",)
    reads_images = True

    def __init__(self, path: str) -> None:
        self._trained: Trained = open_trained(Path(path))
        self.version = "2-" + sha256_file(self._trained.checkpoint.path / COMPLETE)[:12]
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._trained.model.to(self._device)

    def score(self, samples: Sequence[Sample]) -> Iterable[Score]:
        """One score per image whose pictures decode and that has a text of at least one token."""
        asked = [(p, d) for s in samples for p in _neighbours(s) if (d := self._document(p)) is not None]
        best: dict[_Place, tuple[float, _Pair]] = {}
        for chunk in _chunks(asked):
            for (pair, _), value in zip(chunk, self._gain([d for _, d in chunk]), strict=True):
                key = (pair.sample.id, pair.media)
                if key not in best or value > best[key][0]:
                    best[key] = (value, pair)
        for value, p in best.values():
            yield Score("fovea", p.sample.id, p.sample.media[p.media].media_id, value, p.segment)

    def _document(self, pair: _Pair) -> Document | None:
        t = self._trained
        sample, media = pair.sample, pair.media
        if sample.kind != "instruct":
            text = sample.segments[pair.segment]
            shown = (
                Segment(type="image", media=0),
                replace(text, role="alt" if text.role == "alt" else "recaption", loss=None),
            )
            sample = replace(
                sample,
                kind="caption",
                segments=shown,
                media=(sample.media[media],),
                image_bytes=(sample.image_bytes[media],),
            )
        try:
            tokens = render(sample, t.tokenizer, t.recipe.model.image_tokens, "answers")
            pictures = tuple(
                tile for m in tokens.images for tile in decode(sample.image_bytes[m], t.recipe.model.image)
            )
        except (Unusable, DecodeError):
            return None
        shortened = _shortened(tokens, t.stage.sequence_length)
        if shortened is None:
            return None
        return Document(Piece(sample.id, sample.source, 0, shortened), pictures)

    @torch.no_grad()
    def _gain(self, documents: list[Document]) -> list[float]:
        spec = self._trained.recipe.model.image
        blanks = [replace(d, pictures=tuple(blank(spec, p.grid) for p in d.pictures)) for d in documents]
        seen, blind = (self._likelihood(d) for d in (documents, blanks))
        return (seen - blind).tolist()

    def _likelihood(self, documents: list[Document]) -> torch.Tensor:
        """Mean log-likelihood of each document's targets: float32[len(documents)]."""
        t = self._trained
        batch = collate(
            [[d] for d in documents],
            tokenizer=t.tokenizer,
            image=t.recipe.model.image,
            image_tokens=t.recipe.model.image_tokens,
            sequence_length=max(len(d.piece.tokens) for d in documents),
        ).to(self._device)
        loss = F.cross_entropy(
            t.model.logits(batch).float().transpose(1, 2), batch.labels, reduction="none", ignore_index=IGNORE
        )
        return -(loss.sum(1) / (batch.labels != IGNORE).sum(1)).cpu()


def _pairs(sample: Sample) -> Iterator[_Pair]:
    """Every image with every text of the sample; dialogues have none."""
    if sample.kind != "instruct":
        for media in range(len(sample.media)):
            yield from (_Pair(sample, media, n) for n in _texts(sample))


def _texts(sample: Sample) -> list[int]:
    """The numbers of the segments of text that is not blank."""
    return [n for n, s in enumerate(sample.segments) if s.type == "text" and s.text and not s.text.isspace()]


def _neighbours(sample: Sample) -> Iterator[_Pair]:
    texts = _texts(sample)
    if sample.kind == "instruct":
        answers = [n for n in texts if sample.segments[n].role == "assistant"]
        if len(sample.media) == 1 and answers:
            yield _Pair(sample, 0, answers[0])
        return
    for media in range(len(sample.media)):
        at = next((n for n, s in enumerate(sample.segments) if s.media == media), None)
        if at is None:
            continue
        near = [n for n in texts if n < at][-1:] + [n for n in texts if n > at][:1]
        yield from (_Pair(sample, media, n) for n in (texts if sample.kind == "caption" else near))


def _text(pair: _Pair) -> str:
    return pair.sample.segments[pair.segment].text or ""


def _open(data: bytes) -> Image.Image | None:
    """The image in RGB, alpha over white, by the closed table of decoders; None where it is not usable."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            if "A" in image.getbands() or "transparency" in image.info:
                white = Image.new("RGBA", image.size, "white")
                return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
            return image.convert("RGB")
    except Exception:  # noqa: BLE001 - on altered bytes the format parsers raise nearly anything
        return None


def _shortened(tokens: Rendered, length: int) -> Rendered | None:
    """The first `length` tokens; None where that leaves no target, or would cut a picture."""
    if len(tokens) <= length:
        return tokens
    cut = replace(
        tokens,
        input_ids=tokens.input_ids[:length],
        loss=tokens.loss[:length],
        image_ids=tokens.image_ids[:length],
    )
    whole = not tokens.image_ids[length:].any()
    return cut if whole and cut.loss.any() else None


def _normalised(features: Any) -> list[torch.Tensor]:
    values = features if isinstance(features, torch.Tensor) else features.pooler_output
    return list(F.normalize(values.float(), dim=-1).cpu())


def _chunks(items: Sequence[Any]) -> Iterator[list[Any]]:
    rest = iter(items)
    while chunk := list(islice(rest, BATCH)):
        yield chunk
